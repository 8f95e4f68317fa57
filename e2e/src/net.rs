//! Network namespaces of one test, joined by a veth pair: a client's and a server's, with addresses, offloads and an MTU of the
//! test's choosing, and frames of any shape from one to the other. Nothing of it is in the machine's own namespace, nothing has
//! a name that another test could have, and the kernel takes it away with this process, however that ends. Needs root.

pub mod ask;
pub mod flood;
pub mod flow;
pub mod frame;
pub mod ground;
pub mod namespace;
pub mod object;
pub mod packets;
pub mod pair;
pub mod servers;
pub mod tools;
