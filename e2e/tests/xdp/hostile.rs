//! Whoever means no good, or knows no better. Whatever comes: nothing that is not ready is called ready, nothing is kept, and the
//! counters account for every packet.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podlight_e2e::net::ask::{exchange, exchange_within, request, status};
use podlight_e2e::net::flood::{flood, spoofed_syns};
use podlight_e2e::net::flow::Flow;
use podlight_e2e::net::frame::Segment;
use podlight_e2e::net::ground::{Ground, GroundSpec, Mode, PORT};

/// All states of a socket but LISTEN, as `/proc/net/tcp` has them.
const STATES: [&str; 11] = ["01", "02", "03", "04", "05", "06", "07", "08", "09", "0B", "0C"];

/// Longest wait for an answer to a request in many segments: some of a peer's retransmissions.
const SPLIT_PATIENCE: Duration = Duration::from_secs(2);

/// Runs a test in both modes of the program, on a ground where `web` is ready and `cold` is not.
fn in_both(test: impl AsyncFn(&mut Ground) -> Result<()> + Send + Sync) -> Result<()> {
    for mode in Mode::PROGRAM {
        GroundSpec::new(mode).run(async |ground| {
            ground.lasting("web").await?;
            ground.unready("cold").await?;
            let before = left(ground)?;
            test(ground).await?;
            still_right(ground, before).await
        })?;
    }
    Ok(())
}

/// Sockets of the port, but for those that listen. The activator may have served some itself before there were answers.
fn left(ground: &Ground) -> Result<usize> {
    ground.pair.server.sockets(PORT, &STATES)
}

/// It lives, it answers what is, and it has kept nothing since there were so many sockets.
async fn still_right(ground: &Ground, before: usize) -> Result<()> {
    ensure!(ground.activator().is_running(), "the activator has ended");
    ground.until(&ground.path("web"), 200).await?;
    ground.until(&ground.path("cold"), 503).await?;
    let after = left(ground)?;
    ensure!(after <= before, "{after} sockets are left, there were {before}");
    Ok(())
}

#[test]
fn a_flood_of_syns_keeps_nobody_from_an_answer_and_leaves_nothing() -> Result<()> {
    in_both(async |ground| {
        let (before, dropped) = (ground.counters().await?, ground.pair.dropped().await?);
        let frames = spoofed_syns(ground.server())?;
        let packets = ground.pair.packets()?;
        let sent = std::thread::scope(|scope| {
            let flooding = scope.spawn(|| flood(&packets, &frames, 300_000, Duration::from_secs(3)));
            while !flooding.is_finished() {
                assert_eq!(ground.ask(&ground.path("web"))?, 200);
                assert_eq!(ground.ask(&ground.path("cold"))?, 503);
            }
            flooding.join().map_err(|_| anyhow::anyhow!("the flood panicked"))?
        })?;
        ensure!(sent.sent > 10_000, "{sent:?}");
        let counted = ground.counters().await?.since(&before);
        let dropped = ground.pair.dropped().await? - dropped;
        ensure!(counted.of("syn") + dropped >= sent.sent, "{sent:?}, {dropped} dropped, counted {counted:?}");
        ensure!(counted.of("syn") > sent.sent / 10, "{sent:?}, {dropped} dropped");
        Ok(())
    })
}

#[test]
fn garbage_is_answered_with_an_error_or_not_at_all() -> Result<()> {
    in_both(async |ground| {
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(8192));
        let ready = String::from_utf8(request(&ground.path("web")))?;
        let garbage: Vec<Vec<u8>> = vec![
            vec![0; 1],
            vec![0; 3000],
            vec![0xff; 1400],
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            b"\r\n\r\n".to_vec(),
            b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
            long.into_bytes(),
            ready.replacen("GET", "POST", 1).into_bytes(),
            ready.replacen("GET", "HEAD", 1).into_bytes(),
            ready.replacen("GET ", "GET  ", 1).into_bytes(),
            ready.replacen(" HTTP/1.1", "", 1).into_bytes(),
            ready.replacen("HTTP/1.1", "HTTP/2.0", 1).into_bytes(),
            ready.replacen("/web", "/web%20", 1).into_bytes(),
            ready.replacen("/web", "/WEB", 1).into_bytes(),
            ready.replacen("/web", "//web", 1).into_bytes(),
            ready.replacen("/web", "/web\0", 1).into_bytes(),
            ready.replacen("/web", "/./web", 1).into_bytes(),
            ready.replacen("/web", "/cold/../web", 1).into_bytes(),
        ];
        for server in ground.servers() {
            for bytes in &garbage {
                let answer = exchange_within(&ground.pair, server, &[bytes], Duration::from_millis(500));
                // A reset and silence are answers, too.
                if let Ok(answer) = answer
                    && !answer.is_empty()
                {
                    let status = status(&answer)?;
                    ensure!((400..600).contains(&status), "{status} for {:?}", String::from_utf8_lossy(bytes));
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_request_in_many_segments_is_answered_right_or_not_at_all() -> Result<()> {
    in_both(async |ground| {
        for server in ground.servers() {
            for (path, right) in [(ground.path("web"), 200), (ground.path("cold"), 503), (ground.path("none"), 404)] {
                let bytes = request(&path);
                for size in [1, 2, 7, 40] {
                    let portions: Vec<&[u8]> = bytes.chunks(size).collect();
                    let what = format!("{path} from {server} in portions of {size}");
                    // What does not hold the request line is not taken, and sent again with what was sent behind it: enough
                    // unless the line is in more segments than a peer sends at first (10, RFC 6928).
                    match exchange_within(&ground.pair, server, &portions, SPLIT_PATIENCE) {
                        Ok(answer) => assert_eq!(status(&answer)?, right, "{what}"),
                        Err(error) if size > 2 => return Err(error.context(what)),
                        Err(_) => {}
                    }
                }
            }
        }
        Ok(())
    })
}

#[test]
fn requests_behind_the_first_are_not_answered() -> Result<()> {
    in_both(async |ground| {
        for (first, second, right) in [("cold", "web", 503), ("web", "cold", 200), ("none", "web", 404)] {
            let both = [request(&ground.path(first)), request(&ground.path(second))].concat();
            for server in ground.servers() {
                let answer = exchange(&ground.pair, server, &[&both])?;
                assert_eq!(status(&answer)?, right);
                let text = String::from_utf8_lossy(&answer);
                assert_eq!(text.matches("HTTP/1.1").count(), 1, "{text}");
            }
        }
        Ok(())
    })
}

#[test]
fn eight_kilobytes_of_headers_change_no_answer() -> Result<()> {
    for mode in Mode::PROGRAM {
        for mtu in [1500, 9000] {
            GroundSpec { mtu, ..GroundSpec::new(mode) }.run(async |ground| {
                ground.lasting("web").await?;
                ground.unready("cold").await?;
                let before = left(ground)?;
                for server in ground.servers() {
                    for (service, right) in [("web", 200), ("cold", 503)] {
                        let mut bytes = request(&ground.path(service));
                        bytes.truncate(bytes.len() - 2);
                        for n in 0..64 {
                            bytes.extend(format!("X-Filler-{n}: {}\r\n", "f".repeat(112)).bytes());
                        }
                        bytes.extend(b"\r\n");
                        ensure!(bytes.len() > 8192);
                        for _ in 0..20 {
                            assert_eq!(status(&exchange(&ground.pair, server, &[&bytes])?)?, right);
                        }
                    }
                }
                still_right(ground, before).await
            })?;
        }
    }
    Ok(())
}

#[test]
fn an_acknowledgement_without_a_cookie_gets_no_data() -> Result<()> {
    in_both(async |ground| {
        let packets = ground.pair.packets()?;
        let before = ground.counters().await?;
        let ask = request(&ground.path("web"));
        let mut sent = 0;
        for server in ground.servers() {
            // The cookie of another connection is none, either.
            let other = Flow::open(&packets, server)?;
            sent += 1;
            for n in 0..200_u32 {
                let mut flow = Flow::new(&packets, server);
                flow.expected = if n == 0 { other.expected } else { n.wrapping_mul(0x9e37_79b9) };
                flow.sequence = if n == 0 { other.sequence } else { flow.sequence };
                // One with a timestamp that was never sent is the kernel's to refuse.
                let stamp = flow.sequence.wrapping_sub(1).to_be_bytes();
                let stamped = [&[1, 1, 8, 10, 0, 0, 0, 1], &stamp[..]].concat();
                flow.send(&flow.segment().data(&ask).options(&stamped))?;
                let answer = flow.expect("a reset")?;
                ensure!(answer.header.rst && answer.payload.is_empty(), "{answer:?}");
                flow.send(&flow.segment().data(&ask))?;
                flow.send(&flow.segment())?;
                sent += 3;
            }
        }
        let heard =
            packets.receive(Duration::from_millis(200), |seen| (!seen.payload.is_empty()).then(|| seen.clone()))?;
        ensure!(heard.is_none(), "data: {heard:?}");
        let counted = ground.counters().await?.since(&before);
        let right = counted.of("passed_cookie") + counted.of("later") + counted.of("ack") + counted.of("syn");
        ensure!(right == sent && counted.of("passed_cookie") >= 400, "{sent} sent, counted {counted:?}");
        Ok(())
    })
}

#[test]
fn scans_find_an_open_port_and_change_nothing() -> Result<()> {
    in_both(async |ground| {
        for (scan, open) in
            [("-sS", true), ("-sT", true), ("-sA", false), ("-sN", false), ("-sF", false), ("-sX", false)]
        {
            for (server, family) in ground.servers().into_iter().zip(["-4", "-6"]) {
                let (ports, host) = (format!("{}-{}", PORT - 5, PORT + 5), server.ip().to_string());
                let arguments = [scan, family, "-n", "-Pn", "-T4", "--max-retries", "2", "-p", &ports, &host];
                // nmap takes only one of the two for granted.
                let arguments: Vec<&str> = arguments.into_iter().filter(|argument| *argument != "-4").collect();
                let said = ground.pair.client.run("nmap", &arguments).await?;
                let line = said.lines().find(|line| line.starts_with(&format!("{PORT}/tcp"))).unwrap_or_default();
                ensure!(!open || line.contains("open"), "{scan}: {said}");
            }
        }
        let said = ground.pair.client.run("nmap", &["-sV", "-n", "-Pn", "-p", &PORT.to_string(), "10.203.0.2"]).await?;
        ensure!(said.contains(&format!("{PORT}/tcp open")), "{said}");
        Ok(())
    })
}

#[test]
fn a_packet_cut_anywhere_is_no_request() -> Result<()> {
    in_both(async |ground| {
        let packets = ground.pair.packets()?;
        for server in ground.servers() {
            let flow = Flow::open(&packets, server)?;
            let ask = flow.segment().data(&request(&ground.path("web")));
            let others = [
                Segment::syn(flow.from, flow.to, flow.sequence),
                flow.segment(),
                flow.segment().with(|header| header.fin = true),
                Segment::syn(flow.from, flow.to, flow.sequence).tag(7),
            ];
            for segment in others.iter().chain([&ask]) {
                let whole = segment.frame()?;
                for length in 14..whole.len() {
                    packets.send(&whole[..length])?;
                }
            }
            // All that was heard of it.
            while let Some(seen) = flow.heard()? {
                ensure!(seen.payload.is_empty(), "an answer to a packet that was cut: {seen:?}");
            }
            flow.send(&ask)?;
            let answer = flow.expect("an answer to the whole")?;
            assert_eq!(answer.status(), Some(200));
        }
        Ok(())
    })
}

#[test]
fn a_request_that_ends_too_soon_is_not_answered_until_it_is_whole() -> Result<()> {
    in_both(async |ground| {
        let packets = ground.pair.packets()?;
        for server in ground.servers() {
            let bytes = request(&ground.path("web"));
            let line = bytes.windows(2).position(|end| end == b"\r\n").context("no line")? + 2;
            let flow = Flow::open(&packets, server)?;
            for length in 1..line {
                flow.send(&flow.segment().data(&bytes[..length]))?;
            }
            while let Some(seen) = flow.heard()? {
                ensure!(seen.payload.is_empty() && !seen.header.rst, "{seen:?}");
                ensure!(seen.header.acknowledgment_number == flow.sequence, "part of it is acknowledged: {seen:?}");
            }
            // As a peer sends it again.
            flow.send(&flow.segment().data(&bytes))?;
            assert_eq!(flow.expect("an answer")?.status(), Some(200));
        }
        Ok(())
    })
}

#[test]
fn every_packet_to_the_port_is_counted_once() -> Result<()> {
    in_both(async |ground| {
        let packets = ground.pair.packets()?;
        for server in ground.servers() {
            let before = ground.counters().await?;
            let sent = conversation(ground, &packets, server)?;
            let counted = ground.counters().await?.since(&before);
            assert_eq!(counted.sum(), sent, "{counted:?}");
            for (label, count) in [("syn", 2), ("ready", 2), ("unready", 1), ("unknown", 1), ("ack", 1), ("fin", 1)] {
                ensure!(counted.of(label) >= count, "{label}: {counted:?}");
            }
        }
        Ok(())
    })
}

/// Sends some of everything and returns how many packets that was.
fn conversation(
    ground: &Ground,
    packets: &podlight_e2e::net::packets::PacketSocket,
    server: SocketAddr,
) -> Result<u64> {
    let mut sent = 0;
    for service in ["web", "web", "cold", "none"] {
        let flow = Flow::open(packets, server)?;
        let ask = flow.segment().data(&request(&ground.path(service)));
        let mut segments = vec![flow.segment(), ask.clone(), ask];
        segments.push(flow.segment().with(|header| header.fin = true));
        segments.push(flow.segment().with(|header| header.rst = true));
        segments.push(flow.segment().with(|header| header.ack = false));
        segments.push(flow.segment().with(|header| (header.syn, header.fin) = (true, true)));
        for segment in &segments {
            flow.send(segment)?;
        }
        sent += 1 + segments.len() as u64;
        while flow.heard()?.is_some() {}
    }
    Ok(sent)
}
