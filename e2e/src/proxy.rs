//! What requests through the proxy are made with: Services and pods in manifests or on a real API server, pods whose app is a
//! [`Backend`](crate::backend::Backend) in this process, their sidecars' word, and clients of every protocol.

pub mod client;
pub mod clients;
pub mod counts;
pub mod frames;
pub mod island;
pub mod manifests;
pub mod pki;
pub mod stage;
