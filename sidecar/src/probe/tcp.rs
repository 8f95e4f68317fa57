//! The tcp probe: a connection that opens.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::Failure;

pub(super) async fn ask(to: SocketAddr) -> Result<(), Failure> {
    TcpStream::connect(to).await?;
    Ok(())
}
