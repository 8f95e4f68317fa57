//! The readiness port, served by this process: where no XDP program is, and for what one lets pass. It reads requests with
//! the program's own parser and answers with its bytes, from the same answers.
//!
//! One request a connection, then it is closed: the request line is all that is read of it, and everything that a peer can
//! make grow or wait has a bound. Who has sent no request yet makes room for who comes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use podlight_xdp::{ANY_ADDRESS, Answer as Entered, Entry, HEAD_BYTES, Head, Key, NEVER, Reply, Request, TEXT_BYTES};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::held::{Found, Held};
use super::place::Place;
use crate::server::connections::{Admitted, Connections};
use crate::server::{Shutdown, accept, drain};
use crate::table::snapshot::Moment;

/// Its name in metrics and logs.
const NAME: &str = "readiness";

/// Most connections: probes last a millisecond, so that this many at once are a flood.
pub(super) const CONNECTIONS: usize = 1024;

/// What stands before the path: `GET `.
const METHOD_BYTES: usize = 4;

/// How long a request line may take. A kubelet gives a probe one second by default.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the rest of a request is thrown away after the answer, and how much of it: closing with something unread would
/// have the kernel reset the connection, and the peer lose the answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 * 1024;

/// How long connections under way may still take at the end.
const GRACE: Duration = Duration::from_secs(1);

/// Tells an answer of this process from one of the program's, which has no header of this name.
pub(super) const SERVER: &str = "podlight-activator";

/// Serves until the end begins.
pub(super) async fn serve(listener: TcpListener, held: Arc<Held>, most: usize, shutdown: Shutdown) {
    let connections = Arc::new(Connections::new(NAME, most, most));
    let connect = |stream, _, admitted| connection(stream, admitted, Arc::clone(&held), shutdown.clone());
    let tasks = accept(NAME, &listener, &connections, &shutdown, connect).await;
    drop(listener);
    drain(NAME, tasks, GRACE).await;
}

async fn connection(mut stream: TcpStream, admitted: Admitted, held: Arc<Held>, shutdown: Shutdown) {
    let connection = &admitted.connection;
    let asked = tokio::select! {
        biased;
        () = connection.close.notified() => return,
        () = shutdown.begun() => return,
        asked = timeout(REQUEST_TIMEOUT, request(&mut stream)) => asked,
    };
    let outcome = match asked {
        Ok(Ok((request, bytes))) => {
            let _busy = connection.begin();
            let (reply, answered) = answer(request, &bytes, &held);
            // A peer that has gone has nothing more to lose; the kernel has room for one answer.
            let _ = timeout(LINGER, tell(&mut stream, &answered)).await;
            label(reply)
        }
        Ok(Err(_)) => "left",
        Err(_) => "timeout",
    };
    counter!("podlight_xdp_userspace_answers_total", "answer" => outcome).increment(1);
}

/// Reads until the request line tells what is asked; with the bytes that do.
async fn request(stream: &mut TcpStream) -> io::Result<(Request, [u8; HEAD_BYTES])> {
    let (mut bytes, mut read) = ([0; HEAD_BYTES], 0);
    loop {
        match stream.read(&mut bytes[read..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => read += more,
        }
        match Head::new(&bytes[..read]).parse(read) {
            Request::Incomplete if read < HEAD_BYTES => {}
            Request::Incomplete => return Ok((Request::Malformed, bytes)),
            request @ (Request::Get(_) | Request::Method | Request::Malformed) => return Ok((request, bytes)),
        }
    }
}

/// What a request is answered, and in which bytes.
fn answer(request: Request, bytes: &[u8; HEAD_BYTES], held: &Held) -> (Reply, Vec<u8>) {
    let (reply, text) = match request {
        Request::Get(length) => look_up(&bytes[METHOD_BYTES..METHOD_BYTES + length], held),
        Request::Method => (Reply::Method, None),
        Request::Malformed | Request::Incomplete => (Reply::Malformed, None),
    };
    (reply, signed(&reply.bytes(text)))
}

fn look_up(path: &[u8], held: &Held) -> (Reply, Option<[u8; TEXT_BYTES]>) {
    let (Ok(text), Some(key)) = (str::from_utf8(path), Key::new(ANY_ADDRESS, 0, path)) else {
        return (Reply::Unknown, None);
    };
    match held.ask(&Place { at: None, path: text.into() }, Moment::now()) {
        Found::Answer(answer) => {
            let entered = Entered {
                is_ready: answer.ready,
                ready: answer.ready_endpoints,
                total: answer.endpoints,
                updated_ns: 0,
                ttl_ns: NEVER,
                backend: 0,
            };
            let reply = if answer.ready { Reply::Ready } else { Reply::Unready };
            (reply, Some(Entry::new(0, &key, &entered).text))
        }
        Found::Unknown => (Reply::Unknown, None),
        Found::Stale => (Reply::Stale, None),
    }
}

/// The program's bytes with one more header behind the status line.
fn signed(reply: &[u8]) -> Vec<u8> {
    let line = memchr::memchr(b'\n', reply).map_or(0, |end| end + 1);
    let (status, rest) = reply.split_at(line);
    [status, b"Server: ", SERVER.as_bytes(), b"\r\n", rest].concat()
}

/// Answers, ends this side, and reads what still comes.
async fn tell(stream: &mut TcpStream, answer: &[u8]) -> io::Result<()> {
    stream.write_all(answer).await?;
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    let mut left = LINGER_BYTES;
    while left > 0 {
        match stream.read(&mut rest).await? {
            0 => break,
            more => left = left.saturating_sub(more),
        }
    }
    Ok(())
}

const fn label(reply: Reply) -> &'static str {
    match reply {
        Reply::Ready => "ready",
        Reply::Unready => "unready",
        Reply::Stale => "stale",
        Reply::Unknown => "unknown",
        Reply::Malformed => "malformed",
        Reply::Method => "method",
    }
}

#[cfg(test)]
mod tests;
