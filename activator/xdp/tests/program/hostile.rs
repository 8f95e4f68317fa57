//! What no honest peer sends, and packets that are somebody else's.

use etherparse::TcpHeader;
use podlight_xdp::Counter;

use crate::bench::{Action, Bench};
use crate::peer::{INITIAL, PORT, Peer, Reply};
use crate::{PATH, bench, get, open};

type Change = fn(&mut TcpHeader);

/// Frames with everything that a connection has: a SYN, a question, a FIN.
fn frames(bench: &mut Bench, peer: &Peer) -> Vec<Vec<u8>> {
    let (cookie, echo) = open(bench, peer);
    let first = cookie.wrapping_add(1);
    let mut fin = peer.segment(0, first, echo);
    fin.fin = true;
    let question = peer.segment(0, first, echo);
    vec![peer.syn(), peer.frame(question, &get(PATH)), peer.frame(fin, b"")]
}

#[test]
fn a_packet_cut_at_any_length_passes_untouched_and_is_counted_once_its_port_is_readable() {
    let mut bench = bench();
    for peer in Peer::all() {
        for frame in frames(&mut bench, &peer) {
            for length in 14..frame.len() {
                let cut = &frame[..length];
                let (action, out, counter) = bench.run(cut);
                assert_eq!((action, out.as_slice()), (Action::Pass, cut), "{peer:?} {length} {counter:?}");
                let is_readable = length >= peer.before_tcp() + 4;
                assert_eq!(counter, is_readable.then_some(Counter::PassedShape), "{peer:?} {length}");
            }
        }
    }
}

#[test]
fn a_request_cut_at_any_length_waits_for_its_whole_first_line() {
    let mut bench = bench();
    let request = get(PATH);
    let line = request.windows(2).position(|pair| pair == b"\r\n").expect("it has lines") + 2;
    for peer in Peer::all() {
        let (cookie, echo) = open(&mut bench, &peer);
        for length in 1..request.len() {
            let header = peer.segment(0, cookie.wrapping_add(1), echo);
            let (action, _, counter) = bench.run(&peer.frame(header, &request[..length]));
            let expected = if length < line {
                (Action::Drop, Some(Counter::Incomplete))
            } else {
                (Action::Send, Some(Counter::Ready))
            };
            assert_eq!((action, counter), expected, "{peer:?} {length}");
        }
    }
}

#[test]
fn later_segments_are_acknowledged_only_once_the_reply_is() {
    let mut bench = bench();
    for peer in Peer::all() {
        let (cookie, echo) = open(&mut bench, &peer);
        let first = cookie.wrapping_add(1);
        let early = peer.frame(peer.segment(500, first, echo), b"X-More: headers\r\n");
        assert!(matches!(bench.run(&early), (Action::Drop, _, Some(Counter::Later))), "{peer:?}");
        let last = first.wrapping_add(101);
        let late = peer.frame(peer.segment(500, last, echo | 1), b"X-More: headers\r\n");
        let (action, frame, counter) = bench.run(&late);
        assert_eq!(counter, Some(Counter::Later));
        if peer.has_timestamps {
            assert_eq!(action, Action::Send);
            let reply = Reply::read(&peer, &frame);
            assert_eq!(reply.header.acknowledgment_number, INITIAL.wrapping_add(1 + 500 + 17));
            assert!(reply.header.ack && !reply.header.fin && reply.data.is_empty());
        } else {
            // Nothing tells such a segment from a stranger's.
            assert_eq!(action, Action::Drop);
        }
    }
}

#[test]
fn what_comes_behind_the_first_segment_is_never_taken_for_it() {
    let mut bench = bench();
    for peer in Peer::all() {
        let (cookie, echo) = open(&mut bench, &peer);
        for offset in 1..=8 {
            // A byte that no request begins with, and a question behind what it is a part of.
            for data in [b" ".to_vec(), get(PATH)] {
                let frame = peer.frame(peer.segment(offset, cookie.wrapping_add(1), echo), &data);
                let (action, _, counter) = bench.run(&frame);
                assert_eq!((action, counter), (Action::Drop, Some(Counter::Later)), "{peer:?} {offset}");
            }
        }
    }
}

#[test]
fn a_forged_acknowledgement_gets_nothing() {
    let mut bench = bench();
    for peer in Peer::all() {
        let (cookie, echo) = open(&mut bench, &peer);
        // A cookie's lowest two bits are the segment size, so its neighbours may be valid too.
        for forged in [cookie.wrapping_sub(10), cookie.wrapping_add(10), cookie ^ 0x0080_0000, cookie ^ 0x8000_0000] {
            let frame = peer.frame(peer.segment(0, forged, echo), &get(PATH));
            let (action, _, counter) = bench.run(&frame);
            assert_eq!((action, counter), (Action::Drop, Some(Counter::Later)), "{peer:?}");
        }
        if peer.has_timestamps {
            // The right cookie with an echo that is not ours.
            let frame = peer.frame(peer.segment(0, cookie.wrapping_add(1), echo ^ 0x100), &get(PATH));
            assert_eq!(bench.run(&frame), (Action::Pass, frame.clone(), Some(Counter::PassedCookie)));
        }
    }
}

#[test]
fn a_window_without_room_gets_no_reply() {
    let mut bench = bench();
    for peer in Peer::all() {
        let (cookie, echo) = open(&mut bench, &peer);
        for (window, expected) in [
            (0, (Action::Drop, Counter::Window)),
            (99, (Action::Drop, Counter::Window)),
            (100, (Action::Send, Counter::Ready)),
        ] {
            let mut header = peer.segment(0, cookie.wrapping_add(1), echo);
            header.window_size = window;
            let (action, _, counter) = bench.run(&peer.frame(header, &get(PATH)));
            assert_eq!((action, counter), (expected.0, Some(expected.1)));
        }
    }
}

#[test]
fn odd_flags_and_resets_are_left_to_the_kernel() {
    let mut bench = bench();
    for peer in Peer::all() {
        let (cookie, echo) = open(&mut bench, &peer);
        let changes: [(Change, Counter); 7] = [
            (|header| header.ack = false, Counter::PassedShape),
            (
                |header| (header.ack, header.fin, header.psh, header.urg) = (false, true, true, true),
                Counter::PassedShape,
            ),
            (|header| (header.syn, header.fin) = (true, true), Counter::PassedShape),
            (|header| header.syn = true, Counter::PassedShape),
            (|header| (header.syn, header.rst) = (true, true), Counter::PassedShape),
            (|header| header.rst = true, Counter::Reset),
            (|header| (header.rst, header.ack) = (true, false), Counter::Reset),
        ];
        for (change, expected) in changes {
            let mut header = peer.segment(0, cookie.wrapping_add(1), echo);
            change(&mut header);
            let frame = peer.frame(header, &get(PATH));
            assert_eq!(bench.run(&frame), (Action::Pass, frame.clone(), Some(expected)), "{peer:?}");
        }
    }
}

#[test]
fn whatever_is_not_ours_passes_untouched_and_uncounted() {
    let mut bench = bench();
    for peer in Peer::all() {
        let syn = peer.syn();
        let ip = 14 + 4 * peer.tags;
        let tcp = peer.before_tcp();
        let mut others = vec![("another port", tcp + 2, 0x11)];
        if peer.is_v6 {
            others.extend([
                ("hop-by-hop options", ip + 6, 0),
                ("a fragment", ip + 6, 44),
                ("UDP", ip + 6, 17),
                ("IPv5", ip, 0x50),
            ]);
        } else {
            others.extend([("options", ip, 0x46), ("more fragments", ip + 6, 0x20), ("a later fragment", ip + 7, 1)]);
            others.extend([("UDP", ip + 9, 17), ("IPv5", ip, 0x55)]);
        }
        others.push(("another protocol", ip - 2, 0x12));
        for (what, place, byte) in others {
            let mut frame = syn.clone();
            frame[place] = byte;
            assert_eq!(bench.run(&frame), (Action::Pass, frame.clone(), None), "{peer:?} {what}");
        }
        let mut framed = vec![0; 12];
        framed.extend([0x81, 0, 0, 9]);
        framed.extend([0x81, 0, 0, 9]);
        framed.extend(&syn[12..]);
        if peer.tags > 0 {
            assert_eq!(bench.run(&framed), (Action::Pass, framed.clone(), None), "{peer:?} more than two tags");
        }
    }
}

#[test]
fn a_segment_size_below_the_replys_goes_to_userspace() {
    let mut bench = bench();
    for peer in Peer::all() {
        for (size, expected) in [(99_u16, Counter::PassedSyn), (100, Counter::Syn)] {
            let mut header = TcpHeader::new(40_000, PORT, INITIAL, 1_000);
            header.syn = true;
            let [high, low] = size.to_be_bytes();
            header.set_options_raw(&[2, 4, high, low]).expect("it fits");
            assert_eq!(bench.run(&peer.frame(header, b"")).2, Some(expected), "{peer:?}");
        }
    }
}

#[test]
fn padding_behind_the_packet_is_no_data() {
    let mut bench = bench();
    for peer in Peer::all() {
        let (cookie, echo) = open(&mut bench, &peer);
        let header = peer.segment(0, cookie.wrapping_add(1), echo);
        let mut ack = peer.frame(header, b"");
        ack.extend(b"GET /ready/default/web HTTP/1.1\r\n");
        assert!(matches!(bench.run(&ack), (Action::Drop, _, Some(Counter::Ack))), "{peer:?}");
    }
}

#[test]
fn a_request_of_a_jumbo_frame_in_several_buffers_is_answered() {
    let mut bench = bench();
    for peer in Peer::all() {
        let (cookie, echo) = open(&mut bench, &peer);
        let header = peer.segment(0, cookie.wrapping_add(1), echo);
        let mut request = get(PATH);
        request.truncate(request.len() - 2);
        request.extend(format!("X-Long: {}\r\n\r\n", "x".repeat(8_192)).bytes());
        let (action, frame, counter) = bench.run(&peer.frame(header, &request));
        assert_eq!((action, counter), (Action::Send, Some(Counter::Ready)), "{peer:?}");
        let reply = Reply::read(&peer, &frame);
        let length = u32::try_from(request.len()).expect("short");
        assert_eq!(reply.header.acknowledgment_number, INITIAL.wrapping_add(1 + length));
    }
}

#[test]
fn damaged_frames_are_counted_once_at_most_and_never_answered_200_for_another_question() {
    let mut bench = bench();
    let question = format!("GET {PATH} HTTP/1.");
    let mut answered = 0;
    for seed in 0..20_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let peer = Peer::all()[random.usize(0..12)];
        let frames = frames(&mut bench, &peer);
        let mut frame = frames[random.usize(0..frames.len())].clone();
        for _ in 0..random.usize(0..4) {
            let place = random.usize(0..frame.len());
            frame[place] = random.u8(..);
        }
        if random.bool() {
            frame.truncate(random.usize(14..=frame.len()));
        }
        let (action, out, _) = bench.run(&frame);
        if action == Action::Pass {
            assert_eq!(out, frame, "seed {seed}");
        }
        if action == Action::Send && out.windows(12).any(|bytes| bytes == b"HTTP/1.1 200") {
            answered += 1;
            assert!(frame.windows(question.len()).any(|bytes| bytes == question.as_bytes()), "seed {seed}");
        }
    }
    // The frames are close enough to right ones.
    assert!(answered > 1_000, "{answered}");
}

#[test]
fn any_options_get_a_reply_that_is_whole() {
    let mut bench = bench();
    let mut sent = 0;
    for seed in 0..5_000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let peer = Peer { has_timestamps: false, ..Peer::all()[random.usize(0..12)] };
        let mut header = TcpHeader::new(40_000, PORT, INITIAL, 1_000);
        header.syn = true;
        let length = random.usize(0..=10) * 4;
        let kinds = [0, 1, 1, 2, 3, 4, 4, 10, 30, 255];
        let options: Vec<u8> = (0..length).map(|_| kinds[random.usize(0..kinds.len())]).collect();
        header.set_options_raw(&options).expect("it fits");
        let (action, frame, counter) = bench.run(&peer.frame(header, b""));
        match action {
            Action::Send => {
                Reply::read(&peer, &frame);
                sent += 1;
            }
            Action::Pass => assert_eq!(counter, Some(Counter::PassedSyn)),
            Action::Drop => panic!("seed {seed}: {counter:?}"),
        }
    }
    assert!(sent > 1_000, "{sent}");
}
