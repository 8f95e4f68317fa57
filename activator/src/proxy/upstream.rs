//! Connections to backends.

/// One worker's idle connections to one backend.
#[derive(Debug, Default)]
pub struct Pool;

impl Pool {
    /// Closes idle connections and keeps none from now on.
    pub fn retire(&self) {}
}
