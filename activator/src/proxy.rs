//! The request path: holds requests for targets without a ready pod, wakes the targets up, and lets requests go to
//! the pod the moment it is ready.

pub mod annotations;
#[cfg(test)]
mod fixtures;
pub mod follow;
pub mod route;
pub mod status;
pub mod target;
pub mod upstream;
pub mod wake;
