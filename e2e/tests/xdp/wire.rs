//! The program as a TCP peer, segment by segment.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use podlight_e2e::eventually::eventually;
use podlight_e2e::net::ask::request;
use podlight_e2e::net::flow::Flow;
use podlight_e2e::net::frame::Segment;
use podlight_e2e::net::ground::{Ground, GroundSpec, Mode, PORT};
use podlight_e2e::net::packets::PacketSocket;
use podlight_e2e::net::pair::DEVICE;

fn in_both(test: impl AsyncFn(&mut Ground, &PacketSocket, SocketAddr) -> Result<()> + Send + Sync) -> Result<()> {
    for mode in Mode::PROGRAM {
        GroundSpec::new(mode).run(async |ground| {
            ground.ready("web").await?;
            let packets = ground.pair.packets()?;
            for server in ground.servers() {
                test(ground, &packets, server).await?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn an_answer_ends_the_connection_in_the_segment_that_brings_it() -> Result<()> {
    in_both(async |ground, packets, server| {
        let flow = Flow::open(packets, server)?;
        let ask = request(&ground.path("web"));
        flow.send(&flow.segment().data(&ask))?;
        let answer = flow.expect("an answer")?;
        let header = &answer.header;
        ensure!(answer.intact && header.fin && header.ack && !header.rst && answer.status() == Some(200), "{answer:?}");
        assert_eq!(header.sequence_number, flow.expected);
        assert_eq!(header.acknowledgment_number, flow.sequence.wrapping_add(u32::try_from(ask.len())?));
        Ok(())
    })
}

#[test]
fn a_request_that_comes_twice_gets_the_same_answer_twice() -> Result<()> {
    in_both(async |ground, packets, server| {
        let flow = Flow::open(packets, server)?;
        let ask = flow.segment().data(&request(&ground.path("web")));
        let mut answers = Vec::new();
        for _ in 0..2 {
            flow.send(&ask)?;
            let answer = flow.expect("an answer")?;
            answers.push((answer.header.sequence_number, answer.header.acknowledgment_number, answer.payload));
        }
        assert_eq!(answers[0], answers[1]);
        Ok(())
    })
}

#[test]
fn a_fin_is_acknowledged_and_a_reset_is_not() -> Result<()> {
    in_both(async |ground, packets, server| {
        let mut flow = Flow::open(packets, server)?;
        let ask = request(&ground.path("web"));
        flow.send(&flow.segment().data(&ask))?;
        let answer = flow.expect("an answer")?;
        flow.sequence = flow.sequence.wrapping_add(u32::try_from(ask.len())?);
        flow.expected = flow.expected.wrapping_add(u32::try_from(answer.payload.len())?).wrapping_add(1);
        flow.send(&flow.segment().with(|header| header.fin = true))?;
        let last = flow.expect("an acknowledgement")?;
        ensure!(last.header.ack && !last.header.rst && last.payload.is_empty() && last.intact, "{last:?}");
        assert_eq!(last.header.acknowledgment_number, flow.sequence.wrapping_add(1));
        flow.send(&flow.segment().with(|header| header.rst = true))?;
        ensure!(flow.heard()?.is_none(), "an answer to a reset");
        Ok(())
    })
}

#[test]
fn options_of_every_system_are_taken_and_answered_with_none_that_was_not_offered() -> Result<()> {
    // Most common ones of Linux, macOS and Windows; none; more than there are, and a length that goes nowhere.
    let offers: [&[u8]; 6] = [
        &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7],
        &[2, 4, 5, 0xb4, 1, 3, 3, 6, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 4, 2, 0, 0],
        &[2, 4, 5, 0xb4, 1, 3, 3, 8, 1, 1, 4, 2],
        &[],
        &[
            254, 10, 1, 2, 3, 4, 5, 6, 7, 8, 2, 4, 5, 0xb4, 1, 1, 1, 1, 254, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
            13, 14, 15, 16, 17, 18, 0, 0,
        ],
        &[2, 0, 8, 255],
    ];
    in_both(async |ground, packets, server| {
        for options in offers {
            let mut flow = Flow::new(packets, server);
            flow.send(&Segment::syn(flow.from, server, flow.sequence).options(options))?;
            let seen = flow.expect("a SYN-ACK")?;
            flow.accept(&seen)?;
            // Window scale and timestamps would have to be remembered.
            let kinds: Vec<u8> = kinds(seen.header.options.as_slice());
            ensure!(!kinds.contains(&3) || options.contains(&3), "{kinds:?}");
            flow.send(&flow.segment().data(&request(&ground.path("web"))))?;
            assert_eq!(flow.expect("an answer")?.status(), Some(200), "{options:?}");
        }
        Ok(())
    })
}

fn kinds(mut options: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let Some(kind) = options.first().copied().filter(|kind| *kind != 0) {
        let length = if kind == 1 { 1 } else { usize::from(options.get(1).copied().unwrap_or(2)).max(2) };
        kinds.push(kind);
        options = options.get(length..).unwrap_or_default();
    }
    kinds
}

#[test]
fn a_tagged_request_is_answered_behind_the_same_tag() -> Result<()> {
    in_both(async |ground, packets, server| {
        // A packet socket is handed frames without their tag; tcpdump puts it back.
        let filter = format!("vlan 7 and src port {PORT}");
        let sniffer = ground.pair.client.start(
            "tcpdump",
            &["-i", DEVICE, "-nn", "-e", "-l", "--immediate-mode", &filter],
            None,
        )?;
        eventually("tcpdump listens", async || Ok(sniffer.log_tail().contains("listening on").then_some(()))).await?;
        let mut flow = Flow::new(packets, server);
        flow.send(&Segment::syn(flow.from, server, flow.sequence).tag(7))?;
        let seen = flow.expect("a SYN-ACK")?;
        flow.accept(&seen)?;
        flow.send(&flow.segment().data(&request(&ground.path("web"))).tag(7))?;
        assert_eq!(flow.expect("an answer")?.status(), Some(200));
        eventually("both answers are tagged", async || {
            let said = sniffer.log_tail();
            Ok((said.contains("[S.]") && said.contains("HTTP/1.1 200") || said.matches("vlan 7").count() >= 2)
                .then_some(()))
        })
        .await
    })
}
