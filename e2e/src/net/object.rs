//! The far end's XDP program: it passes everything. A veth device sends what a native program answers only when the device at the
//! other end has a native program too, whatever that does. Two instructions, as an ELF object that `ip link` loads.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use object::write::{Object, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};

/// The section that holds it; its name says that frames in several pieces are no trouble.
pub const SECTION: &str = "xdp.frags";

/// `r0 = 2` (XDP_PASS), `exit`: `include/uapi/linux/bpf.h`.
const PASS: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// Writes the object.
///
/// # Errors
/// When it cannot be written.
pub fn write_pass(path: &Path) -> Result<()> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let code = object.add_section(Vec::new(), SECTION.into(), SectionKind::Text);
    object.append_section_data(code, PASS.as_flattened(), 8);
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    object.append_section_data(license, b"GPL\0", 1);
    object.add_symbol(Symbol {
        name: b"pass".to_vec(),
        value: 0,
        size: PASS.as_flattened().len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Linkage,
        weak: false,
        section: SymbolSection::Section(code),
        flags: SymbolFlags::None,
    });
    fs::write(path, object.write()?).with_context(|| format!("cannot write {}", path.display()))
}
