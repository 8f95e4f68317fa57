//! What the XDP program, its loader, the userspace server of the same port and the fuzz targets share: the maps' types, the
//! parser of requests, the bytes of replies and the counters. No I/O, no allocation, no clock: the program runs in the
//! kernel, and one implementation gives both sides the same answer to the same bytes.
//!
//! The invariant of everything here is *never a false 200*. A 200 leaves only if the path is, byte for byte, one that the
//! writer put into the map, the entry says 200, the entry is fresh and the writer's heartbeat is fresh. Whatever is odd is
//! answered 400, 404, 405 or 503, or not at all.
#![cfg_attr(not(test), no_std)]

mod counter;
mod map;
mod reply;
mod request;

pub use counter::Counter;
pub use map::{
    ANY_ADDRESS, Answer, Beat, Entry, Key, Listen, ListenKey, MAX_PATH, NEVER, PATH_WORDS, Ports, SHORT_PATH,
    SHORT_WORDS, Settings, Shelf, ShortKey, Store, Verdict, is_fresh, path_tag, v4_mapped,
};
pub use reply::{REPLY_BYTES, Reply, TEXT_BYTES};
pub use request::{HEAD_BYTES, Head, Request};
