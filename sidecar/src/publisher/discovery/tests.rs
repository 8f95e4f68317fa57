use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;

use super::*;

/// What the name server answers (nothing: there is no such name), and how often it was asked.
#[derive(Default)]
struct Zone {
    addresses: Vec<IpAddr>,
    asked: usize,
}

async fn name_server(zone: watch::Sender<Zone>) -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    let port = socket.local_addr().expect("an address").port();
    tokio::spawn(async move {
        let mut bytes = [0; 1500];
        while let Ok((len, from)) = socket.recv_from(&mut bytes).await {
            let asked = Message::from_vec(&bytes[..len]).expect("a query");
            let answer = answer(&asked, &zone.borrow().addresses);
            socket.send_to(&answer.to_vec().expect("encodes"), from).await.expect("sent");
            zone.send_modify(|zone| zone.asked += 1);
        }
    });
    port
}

fn answer(asked: &Message, zone: &[IpAddr]) -> Message {
    let query = asked.queries[0].clone();
    let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    if zone.is_empty() {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    for &address in zone {
        let matches = (query.query_type() == RecordType::A) == address.is_ipv4();
        if matches {
            answer.add_answer(Record::from_rdata(query.name().clone(), 0, RData::from(address)));
        }
    }
    answer.add_query(query);
    answer
}

fn resolver_at(port: u16) -> Result<TokioResolver, NetError> {
    let mut connection = ConnectionConfig::udp();
    connection.port = port;
    let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![connection]);
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    builder.build()
}

#[tokio::test]
async fn the_service_is_looked_up_again_and_no_answer_leaves_the_last() {
    let zone = watch::Sender::new(Zone::default());
    let port = name_server(zone.clone()).await;
    let service = Url::parse("https://events.mesh.svc:8443").expect("a URL");
    let roots = watch::Sender::new(BTreeSet::new());
    let mut found = roots.subscribe();
    let every = Duration::from_millis(10);
    let looking = tokio::spawn(run(Activator::Service(service), roots, move || resolver_at(port), every));

    let v6 = IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7));
    let both = ["https://10-0-0-7.events.mesh.svc:8443/", "https://fd00-0-0-0-0-0-0-7.events.mesh.svc:8443/"];
    for (addresses, urls) in [
        (vec![[10, 0, 0, 7].into(), v6], &both[..]),
        (vec![[10, 0, 0, 8].into()], &["https://10-0-0-8.events.mesh.svc:8443/"]),
    ] {
        zone.send_modify(|zone| zone.addresses = addresses);
        let named = |roots: &BTreeSet<Url>| roots.iter().map(Url::as_str).eq(urls.iter().copied());
        found.wait_for(named).await.expect("still looking");
    }
    let last = found.borrow_and_update().clone();
    zone.send_modify(|zone| zone.addresses.clear());
    let asked = zone.borrow().asked;
    zone.subscribe().wait_for(|zone| zone.asked > asked + 8).await.expect("still serving");
    assert_eq!(*found.borrow(), last);
    drop(found);
    looking.await.expect("ends when nobody follows");
}
