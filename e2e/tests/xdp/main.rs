//! Probes that the kernel answers from the readiness map, over real veth pairs in network namespaces of their own. `make test-xdp`
//! runs them, as root; without root each of them fails. What the harness sees is proved on nginx first: a count that could not
//! be anything but zero proves nothing.

mod clients;
mod cluster;
mod harness;
mod hostile;
mod life;
mod wire;
