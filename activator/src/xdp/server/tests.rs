use std::net::SocketAddr;

use proptest::prelude::*;
use tokio::task::JoinHandle;

use super::*;
use crate::server::ShutdownTrigger;
use crate::xdp::answers::Answer;
use crate::xdp::fixtures::place;

/// A served port, and what it answers from.
struct Port {
    address: SocketAddr,
    held: Arc<Held>,
    end: ShutdownTrigger,
    task: JoinHandle<()>,
}

fn serve_at_most(most: usize) -> Port {
    let listener = crate::server::bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let address = listener.local_addr().expect("is bound");
    let held = Arc::new(Held::new(Duration::from_secs(3600)));
    let answer = |ready, ready_endpoints| Answer { ready, ready_endpoints, endpoints: 5 };
    held.put(Arc::new(place("/ready/shop/web")), answer(true, 3));
    held.put(Arc::new(place("/ready/shop/idle")), answer(false, 0));
    held.beat(Some(Moment::now()));
    let (end, ended) = Shutdown::new();
    let task = tokio::spawn(serve(listener, Arc::clone(&held), most, ended));
    Port { address, held, end, task }
}

impl Port {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connects")
    }

    /// Sends bytes and returns all that comes until the other side ends.
    async fn ask(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request).await.expect("is taken");
        rest(stream).await
    }
}

async fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("ends in order, not by a reset");
    String::from_utf8(bytes).expect("ASCII")
}

fn said(reply: Reply, text: Option<[u8; 16]>) -> String {
    String::from_utf8(signed(&reply.bytes(text))).expect("ASCII")
}

#[tokio::test]
async fn answers_what_the_map_says_in_the_programs_words() {
    let port = serve_at_most(8);
    let get = async |path: &str| port.ask(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
    let answer = get("/ready/shop/web").await;
    assert_eq!(answer, said(Reply::Ready, Some(*b"         3 of 5\n")));
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\nServer: podlight-activator\r\nConnection: close\r\n"), "{answer}");
    assert_eq!(get("/ready/shop/idle").await, said(Reply::Unready, Some(*b"         0 of 5\n")));
    for unknown in ["/ready/shop/we", "/ready/shop/web/", "/ready/shop/web?x", "/", "/ready/shop/%77eb", "/\u{e9}"] {
        assert_eq!(get(unknown).await, said(Reply::Unknown, None), "{unknown}");
    }
    assert_eq!(port.ask(b"GET /\xff HTTP/1.1\r\n\r\n").await, said(Reply::Unknown, None));
    assert_eq!(port.ask(b"POST /ready/shop/web HTTP/1.1\r\n\r\n").await, said(Reply::Method, None));
    port.held.beat(None);
    assert_eq!(get("/ready/shop/web").await, said(Reply::Stale, None));
    assert_eq!(get("/ready/shop/we").await, said(Reply::Stale, None), "nobody knows which paths there are");
}

#[tokio::test]
async fn the_request_line_alone_decides_and_one_request_is_answered() {
    let port = serve_at_most(8);
    let ready = said(Reply::Ready, Some(*b"         3 of 5\n"));
    let request = b"GET /ready/shop/web HTTP/1.1\r\n";
    assert_eq!(port.ask(request).await, ready);
    assert_eq!(port.ask(&request.repeat(100)).await, ready, "pipelined");
    let long = [&request[..], b"X: ", &[b'x'; 8192], b"\r\n\r\n"].concat();
    assert_eq!(port.ask(&long).await, ready, "8 KiB of headers");
    let mut stream = port.connect().await;
    stream.set_nodelay(true).expect("a socket");
    for byte in request {
        stream.write_all(&[*byte]).await.expect("is taken");
        tokio::task::yield_now().await;
    }
    assert_eq!(rest(stream).await, ready, "a segment for each byte");
}

#[tokio::test]
async fn what_is_no_request_is_400() {
    let port = serve_at_most(8);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(176));
    for garbage in
        [&b"\x16\x03\x01\x02\x00"[..], b"\0\0\0\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\r\n", long.as_bytes()]
    {
        let answer = port.ask(garbage).await;
        let wanted = if garbage.starts_with(b"PRI") { Reply::Method } else { Reply::Malformed };
        assert_eq!(answer, said(wanted, None), "{garbage:?}");
    }
}

#[tokio::test]
async fn silence_is_ended_without_an_answer() {
    let port = serve_at_most(8);
    let mut half = port.connect().await;
    half.write_all(b"GET /ready/shop/web HT").await.expect("is taken");
    let silent = port.connect().await;
    // Time goes on by itself from now on, as nothing else happens.
    tokio::time::pause();
    assert_eq!(rest(silent).await, "");
    assert_eq!(rest(half).await, "");
}

#[tokio::test]
async fn who_says_nothing_makes_room_for_who_asks() {
    let port = serve_at_most(4);
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(port.connect().await);
    }
    let answer = port.ask(b"GET /ready/shop/web HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(rest(silent.remove(0)).await, "", "the one that has been silent longest was closed");
}

#[tokio::test]
async fn ends_when_told_and_leaves_no_connection() {
    let port = serve_at_most(4);
    let silent = port.connect().await;
    let answer = port.ask(b"GET /ready/shop/web HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    port.end.begin();
    port.task.await.expect("ends well");
    assert_eq!(rest(silent).await, "");
    TcpStream::connect(port.address).await.expect_err("nobody listens");
}

proptest! {
    /// Cut anywhere, a request gets the answer that it gets in one piece, which is the one of the program's own parser.
    #[test]
    fn bytes_are_answered_alike_however_they_come(
        request in "(GET|POST|get|G) ?/(ready/shop/(web|idle|x)|[ -~]{0,20}) ?HTTP/[0-2].[0-9]\r?\n(\r\n)?",
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = request.as_bytes();
        let cut = cut.index(bytes.len() + 1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let port = serve_at_most(8);
            let (mut whole, parsed) = ([0; HEAD_BYTES], Head::new(bytes).parse(bytes.len()));
            whole[..bytes.len()].copy_from_slice(bytes);
            let wanted = match parsed {
                // The peer ends its side: nothing comes any more, and nothing was asked.
                Request::Incomplete => String::new(),
                parsed @ (Request::Get(_) | Request::Method | Request::Malformed) => {
                    String::from_utf8(answer(parsed, &whole, &port.held).1).expect("ASCII")
                }
            };
            let mut stream = port.connect().await;
            stream.write_all(&bytes[..cut]).await.expect("is taken");
            tokio::task::yield_now().await;
            // A part may have been enough for an answer.
            let _ = stream.write_all(&bytes[cut..]).await;
            let _ = stream.shutdown().await;
            prop_assert_eq!(rest(stream).await, wanted);
            Ok(())
        })?;
    }
}
