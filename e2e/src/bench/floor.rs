//! The least that a storm of connections can cost: a process that shakes hands by the activator's TLS library and with its
//! settings, and answers each request with the bytes of a 202 without looking at it. It is this same program
//! (`podlight-bench child floor`); what it takes, no activator on this machine can do without.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::NoServerSessionStorage;
use tokio::io::{AsyncRead, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::control_plane::process::{Process, free_port};
use crate::eventually::eventually;

/// As many as the kernel lets wait, as the activator does.
const BACKLOG: u32 = 4096;

/// As long as an activator's answer to a first contact.
const BODY: &str = concat!(
    r#"{"result":"applied","boot":1790000000000,"replica":"replica-0","#,
    r#""heartbeat_after_seconds":5,"lease_seconds":15,"peers":[]}"#
);

/// Runs it, as the child that `Floor::start` has started.
///
/// # Errors
/// When TLS cannot be set up, or the address is taken.
pub fn serve(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let address: SocketAddr = arguments.next().context("which address?")?.parse()?;
    let acceptor = TlsAcceptor::from(Arc::new(tls()?));
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(answer(acceptor.clone(), stream));
        }
    })
}

fn tls() -> Result<ServerConfig> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

async fn answer(acceptor: TlsAcceptor, stream: TcpStream) -> Result<()> {
    let mut stream = Box::new(Box::pin(acceptor.accept(stream)).await?);
    let answer = format!(
        "HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let mut request = Vec::new();
    while read(&mut stream, &mut request).await? > 0 {
        if is_whole(&request) {
            request = Vec::new();
            stream.write_all(answer.as_bytes()).await?;
            stream.flush().await?;
        }
    }
    Ok(())
}

/// Reads without a buffer of its own while there is nothing.
async fn read(stream: &mut TlsStream<TcpStream>, request: &mut Vec<u8>) -> Result<usize> {
    poll_fn(|cx| {
        let mut bytes = [MaybeUninit::uninit(); 4096];
        let mut buffer = ReadBuf::uninit(&mut bytes);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
        request.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    })
    .await
}

fn is_whole(request: &[u8]) -> bool {
    let Some(head) = request.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let text = std::str::from_utf8(&request[..head]).unwrap_or_default();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    request.len() >= head + 4 + length.unwrap_or(0)
}

/// The process, while it runs.
pub(super) struct Floor {
    /// Where it listens.
    pub(super) port: u16,
    process: Process,
    _folder: tempfile::TempDir,
}

impl Floor {
    /// Starts it.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = free_port()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let log = folder.path().join("floor.log");
        let process = Process::start(&std::env::current_exe()?, &log, |command| {
            command.args(["child", "floor", &address.to_string()]);
        })?;
        eventually("the bare loop listens", async || Ok(TcpStream::connect(address).await.ok())).await?;
        Ok(Self { port, process, _folder: folder })
    }

    /// The kernel's id of the process.
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }
}
