//! The Podlight sidecar.
fn main() {}
