//! The Podlight activator.
fn main() {}
