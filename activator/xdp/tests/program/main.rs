//! The program itself, frame by frame: what it does, how it counts, and that nothing but the right question is answered 200.

mod bench;
mod hostile;
mod peer;

use bench::{Action, Bench, now};
use peer::{INITIAL, PORT, Peer, Reply};
use podlight_xdp::{ANY_ADDRESS, Answer, Beat, Counter, Entry, Key, MAX_PATH, NEVER, REPLY_BYTES, v4_mapped};

pub(crate) const PATH: &str = "/ready/default/web";
pub(crate) const DOWN: &str = "/ready/default/down";
const ANSWER: Answer = Answer { is_ready: true, ready: 3, total: 5, updated_ns: 0, ttl_ns: NEVER, backend: 1 };

pub(crate) fn key(path: &str) -> Key {
    Key::new(ANY_ADDRESS, PORT, path.as_bytes()).expect("a path")
}

pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: 10.0.0.2:9000\r\nUser-Agent: kube-probe/1.34\r\nAccept: */*\r\nConnection: close\r\n\r\n")
        .into_bytes()
}

/// A program that answers for one Service that is ready and one that is not.
pub(crate) fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.listen(PORT, None);
    bench.put(&key(PATH), &ANSWER);
    bench.put(&key(DOWN), &Answer { is_ready: false, ready: 0, ..ANSWER });
    bench
}

/// Opens a connection; the cookie and what the timestamp is to echo.
pub(crate) fn open(bench: &mut Bench, peer: &Peer) -> (u32, u32) {
    let (action, frame, counter) = bench.run(&peer.syn());
    assert_eq!((action, counter), (Action::Send, Some(Counter::Syn)), "{peer:?}");
    let reply = Reply::read(peer, &frame);
    (reply.header.sequence_number, reply.timestamp.map_or(0, |(ours, _)| ours))
}

/// Asks on a new connection; the answer.
fn ask(bench: &mut Bench, peer: &Peer, request: &[u8]) -> (Counter, Reply) {
    let (cookie, echo) = open(bench, peer);
    let header = peer.segment(0, cookie.wrapping_add(1), echo);
    let (action, frame, counter) = bench.run(&peer.frame(header, request));
    assert_eq!(action, Action::Send, "{peer:?} {counter:?}");
    (counter.expect("it is counted"), Reply::read(peer, &frame))
}

#[test]
fn a_syn_is_answered_as_a_peer_would() {
    let mut bench = bench();
    for peer in Peer::all() {
        let (_, frame, _) = bench.run(&peer.syn());
        let reply = Reply::read(&peer, &frame);
        assert!(reply.header.syn && reply.header.ack && !reply.header.fin && !reply.header.rst && !reply.header.psh);
        assert_eq!(reply.header.acknowledgment_number, INITIAL.wrapping_add(1));
        assert_eq!(reply.segment, Some(if peer.is_v6 { 1_440 } else { 1_460 }));
        assert_eq!(reply.header.window_size, reply.segment.expect("there is one"));
        assert!(reply.timestamp.is_none_or(|(_, theirs)| theirs == 0x0102_0304));
        assert!(reply.data.is_empty());
    }
}

#[test]
fn a_connection_goes_from_syn_to_fin_without_a_memory() {
    let mut bench = bench();
    for peer in Peer::all() {
        let (cookie, echo) = open(&mut bench, &peer);
        let first = cookie.wrapping_add(1);
        let ack = peer.frame(peer.segment(0, first, echo), b"");
        assert!(matches!(bench.run(&ack), (Action::Drop, _, Some(Counter::Ack))), "{peer:?}");

        let request = get(PATH);
        let length = u32::try_from(request.len()).expect("short");
        let question = peer.frame(peer.segment(0, first, echo), &request);
        let (action, frame, counter) = bench.run(&question);
        assert_eq!((action, counter), (Action::Send, Some(Counter::Ready)), "{peer:?}");
        let reply = Reply::read(&peer, &frame);
        assert!(reply.header.fin && reply.header.ack && reply.header.psh && !reply.header.syn);
        assert_eq!(reply.header.sequence_number, first);
        assert_eq!(reply.header.acknowledgment_number, INITIAL.wrapping_add(1 + length));
        assert!(reply.text().starts_with("HTTP/1.1 200 OK\r\n") && reply.text().ends_with(" 3 of 5\n"), "{reply:?}");
        assert_eq!(reply.data.len(), REPLY_BYTES);
        let echo = reply.timestamp.map_or(0, |(ours, _)| ours);
        // Once more, as after a loss.
        assert_eq!(bench.run(&question).1, frame);

        let last = first.wrapping_add(u32::try_from(REPLY_BYTES).expect("short") + 1);
        let ack = peer.frame(peer.segment(length, last, echo), b"");
        assert!(matches!(bench.run(&ack), (Action::Drop, _, Some(Counter::Ack))), "{peer:?}");
        let mut header = peer.segment(length, last, echo);
        header.fin = true;
        let (action, frame, counter) = bench.run(&peer.frame(header, b""));
        assert_eq!((action, counter), (Action::Send, Some(Counter::Fin)), "{peer:?}");
        let reply = Reply::read(&peer, &frame);
        assert!(
            reply.header.ack && !reply.header.fin && !reply.header.rst && reply.data.is_empty(),
            "{peer:?} {reply:?}"
        );
        assert_eq!(reply.header.sequence_number, last);
        assert_eq!(reply.header.acknowledgment_number, INITIAL.wrapping_add(1 + length + 1));
    }
}

#[test]
fn a_peer_that_leaves_without_a_question_is_let_go() {
    let mut bench = bench();
    for peer in Peer::all() {
        let (cookie, echo) = open(&mut bench, &peer);
        let mut header = peer.segment(0, cookie.wrapping_add(1), echo);
        header.fin = true;
        let (action, frame, counter) = bench.run(&peer.frame(header, b""));
        assert_eq!((action, counter), (Action::Send, Some(Counter::Fin)), "{peer:?}");
        let reply = Reply::read(&peer, &frame);
        assert!(reply.header.fin && reply.header.ack && reply.data.is_empty());
        assert_eq!(reply.header.acknowledgment_number, INITIAL.wrapping_add(2));
        let echo = reply.timestamp.map_or(0, |(ours, _)| ours);
        let ack = peer.frame(peer.segment(1, cookie.wrapping_add(2), echo), b"");
        assert!(matches!(bench.run(&ack), (Action::Drop, _, Some(Counter::Ack))), "{peer:?}");
    }
}

#[test]
fn a_question_that_brings_its_fin_is_answered_and_both_are_acknowledged() {
    let mut bench = bench();
    for peer in Peer::all() {
        let (cookie, echo) = open(&mut bench, &peer);
        let mut header = peer.segment(0, cookie.wrapping_add(1), echo);
        header.fin = true;
        let request = get(PATH);
        let (action, frame, counter) = bench.run(&peer.frame(header, &request));
        assert_eq!((action, counter), (Action::Send, Some(Counter::Ready)));
        let acknowledged = Reply::read(&peer, &frame).header.acknowledgment_number;
        assert_eq!(acknowledged, INITIAL.wrapping_add(2 + u32::try_from(request.len()).expect("short")));
    }
}

#[test]
fn each_question_gets_its_own_answer() {
    let mut bench = bench();
    let long = format!("/{}", "x".repeat(200));
    for peer in Peer::all() {
        for (request, status, counter) in [
            (get(PATH), 200, Counter::Ready),
            (get(DOWN), 503, Counter::Unready),
            (get("/ready/default/we"), 404, Counter::Unknown),
            (get("/ready/default/webs"), 404, Counter::Unknown),
            (get("/ready/default/web?"), 404, Counter::Unknown),
            (get("/READY/default/web"), 404, Counter::Unknown),
            (get(&long), 400, Counter::Malformed),
            (b"GET /ready/default/web\r\n".to_vec(), 400, Counter::Malformed),
            (b"\x16\x03\x01\x00\xa5\x01\x00\x00".to_vec(), 400, Counter::Malformed),
            (b"HEAD /ready/default/web HTTP/1.1\r\n\r\n".to_vec(), 405, Counter::Method),
            (b"GET /ready/default/web HTTP/1.0\r\n\r\n".to_vec(), 200, Counter::Ready),
        ] {
            let (counted, reply) = ask(&mut bench, &peer, &request);
            assert!(reply.text().starts_with(&format!("HTTP/1.1 {status} ")), "{reply:?}");
            assert_eq!(counted, counter);
        }
    }
}

#[test]
fn paths_of_every_length_are_found_and_told_apart_however_short_the_request() {
    let mut bench = bench();
    for peer in [true, false].map(|is_v6| Peer { is_v6, tags: 0, has_timestamps: true }) {
        for length in 1..=MAX_PATH {
            let path = format!("/{}", "x".repeat(length - 1));
            bench.put(&key(&path), &ANSWER);
            for request in [get(&path), format!("GET {path} HTTP/1.0\r\n\r\n").into_bytes()] {
                assert_eq!(ask(&mut bench, &peer, &request).0, Counter::Ready, "{length}");
            }
            if length > 1 {
                let other = format!("{}y", &path[..length - 1]);
                assert_eq!(ask(&mut bench, &peer, &get(&other)).0, Counter::Unknown, "{length}");
            }
        }
        assert_eq!(ask(&mut bench, &peer, &get(&format!("/{}", "x".repeat(MAX_PATH)))).0, Counter::Malformed);
    }
}

#[test]
fn a_timestamp_is_found_wherever_it_stands() {
    let mut bench = bench();
    for peer in Peer::all().into_iter().filter(|peer| peer.has_timestamps) {
        let (cookie, echo) = open(&mut bench, &peer);
        let stamp = [&[8, 10, 1, 2, 3, 4], &echo.to_be_bytes()[..]].concat();
        let orders: [&[u8]; 4] =
            [&[&stamp[..], &[1, 1]].concat(), &[&[1][..], &stamp, &[1]].concat(), &[&stamp[..], &[0]].concat(), &stamp];
        for options in orders {
            let mut header = peer.segment(0, cookie.wrapping_add(1), echo);
            header.set_options_raw(options).expect("it fits");
            let (action, frame, counter) = bench.run(&peer.frame(header, &get(PATH)));
            assert_eq!((action, counter), (Action::Send, Some(Counter::Ready)), "{peer:?} {options:?}");
            Reply::read(&peer, &frame);
        }
    }
}

#[test]
fn an_answer_that_has_run_out_is_503_and_never_200() {
    let mut bench = bench();
    let peer = Peer { is_v6: false, tags: 0, has_timestamps: true };
    let second = 1_000_000_000;
    for (updated_ns, ttl_ns, status) in [
        (now() - 10 * second, 5 * second, 503),
        (now() - 10 * second, 3_600 * second, 200),
        (now(), 0, 503),
        (0, NEVER, 200),
    ] {
        bench.put(&key(PATH), &Answer { updated_ns, ttl_ns, ..ANSWER });
        let (_, reply) = ask(&mut bench, &peer, &get(PATH));
        assert!(reply.text().starts_with(&format!("HTTP/1.1 {status} ")), "{updated_ns} {ttl_ns}: {reply:?}");
    }
}

#[test]
fn without_a_heartbeat_a_syn_goes_to_userspace_and_a_connection_of_ours_is_told_503() {
    let mut bench = bench();
    let second = 1_000_000_000;
    for peer in Peer::all() {
        for beat in [Beat::default(), Beat { updated_ns: now() - 4 * second, ttl_ns: 3 * second }] {
            bench.beat(Beat { updated_ns: now(), ttl_ns: NEVER });
            let (cookie, echo) = open(&mut bench, &peer);
            bench.beat(beat);
            let syn = peer.syn();
            assert_eq!(bench.run(&syn), (Action::Pass, syn.clone(), Some(Counter::PassedStale)));
            for path in [PATH, DOWN, "/unknown"] {
                let header = peer.segment(0, cookie.wrapping_add(1), echo);
                let (action, frame, counter) = bench.run(&peer.frame(header, &get(path)));
                assert_eq!((action, counter), (Action::Send, Some(Counter::Stale)));
                assert!(Reply::read(&peer, &frame).text().starts_with("HTTP/1.1 503 "));
            }
        }
    }
}

#[test]
fn an_entry_that_became_anothers_is_503() {
    let mut bench = bench();
    let other = Entry::new(0x5eed, &key("/ready/default/other"), &ANSWER);
    bench.put_entry(&key(PATH), other);
    for peer in Peer::all() {
        let (counter, reply) = ask(&mut bench, &peer, &get(PATH));
        assert_eq!(counter, Counter::Stale);
        assert!(reply.text().starts_with("HTTP/1.1 503 "));
    }
}

#[test]
fn a_configured_probe_is_answered_on_its_own_address_and_nowhere_else() {
    let mut bench = Bench::new();
    bench.listen(PORT, Some(v4_mapped([10, 0, 0, 2])));
    let probe = Key::new(v4_mapped([10, 0, 0, 2]), PORT, b"/healthz").expect("a path");
    bench.put(&probe, &ANSWER);
    bench.put(&key("/ready/default/web"), &ANSWER);
    let v4 = Peer { is_v6: false, tags: 0, has_timestamps: true };
    assert_eq!(ask(&mut bench, &v4, &get("/healthz")).0, Counter::Ready);
    // Shared answers are not this address's.
    assert_eq!(ask(&mut bench, &v4, &get(PATH)).0, Counter::Unknown);
    let syn = Peer { is_v6: true, ..v4 }.syn();
    assert_eq!(bench.run(&syn), (Action::Pass, syn.clone(), None));
}

#[test]
fn an_address_that_is_left_is_left_at_once() {
    let mut bench = Bench::new();
    for peer in Peer::all() {
        let (_, server) = peer.addresses();
        let address = match server {
            std::net::IpAddr::V4(address) => v4_mapped(address.octets()),
            std::net::IpAddr::V6(address) => address.octets(),
        };
        for _ in 0..3 {
            bench.listen(PORT, Some(address));
            let (cookie, echo) = open(&mut bench, &peer);
            bench.unlisten(PORT, address);
            let question = peer.frame(peer.segment(0, cookie.wrapping_add(1), echo), &get(PATH));
            for frame in [peer.syn(), question] {
                assert_eq!(bench.run(&frame), (Action::Pass, frame.clone(), None), "{peer:?}");
            }
        }
    }
}
