//! For measuring the XDP program: `BPF_PROG_TEST_RUN` repeats a run on what the run before left of the packet, and one that was
//! turned into its reply is no question any more. This puts the packet back as it was and goes on to the program that is
//! measured, or to one that does nothing, which tells what this here costs.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_PASS},
    helpers::{bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_store_bytes},
    macros::{map, xdp},
    maps::{Array, ProgramArray},
    programs::XdpContext,
};

/// A frame as it was.
#[repr(C)]
struct Frame {
    length: u32,
    bytes: [u8; MOST as usize],
}

/// A power of two, which makes a bound that the verifier sees.
const MOST: u32 = 512;

#[map]
static FRAME: Array<Frame> = Array::with_max_entries(1, 0);

/// The program that is measured.
#[map]
static MEASURED: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// The entry point.
#[xdp(frags)]
pub fn replay(ctx: XdpContext) -> u32 {
    let Some(frame) = FRAME.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: the frame is the map's, and what is copied of it is at most all of it; the helpers are on this packet.
    unsafe {
        let length = core::ptr::read_volatile(&raw const (*frame).length) & (MOST - 1);
        let grows = length as i32 - bpf_xdp_get_buff_len(ctx.ctx) as i32;
        if length == 0
            || bpf_xdp_adjust_tail(ctx.ctx, grows) != 0
            || bpf_xdp_store_bytes(ctx.ctx, 0, (&raw mut (*frame).bytes).cast(), length) != 0
        {
            return XDP_ABORTED;
        }
        // It does not come back, unless there is no program.
        let _ = MEASURED.tail_call(&ctx, 0);
    }
    XDP_ABORTED
}

/// What there is to compare with.
#[xdp(frags)]
pub fn nothing(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

/// Nothing here panics; the language wants a handler all the same.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// As the program that is measured.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
