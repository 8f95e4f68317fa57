use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use futures::FutureExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::*;

static HTTP1: Key = key(Expected::Http1);
static HTTP2: Key = key(Expected::Http2);
static EITHER: Key = key(Expected::Either);

const fn key(expected: Expected) -> Key {
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 80);
    Key { address, other: None, name: None, expected }
}

fn open<'a>(pool: &'a Pool, key: &Key) -> Option<Opening<'a>> {
    match pool.turn(key).now_or_never()? {
        Turn::Open(opening) => Some(opening),
        Turn::Take(_) | Turn::Failed(_) => None,
    }
}

/// A connection, and the end of it that is to stay.
async fn connection() -> (Http1, tokio::io::DuplexStream) {
    let (near, far) = tokio::io::duplex(64);
    let (sender, connection) = http1::handshake(TokioIo::new(near)).await.expect("nothing is sent");
    tokio::spawn(connection);
    (Http1 { key: HTTP1.clone(), sender }, far)
}

#[tokio::test]
async fn a_burst_opens_as_many_as_it_needs_within_a_bound() {
    let pool = Pool::new(1);
    let mut opening: Vec<_> = (0..MOST_OPENING).map(|_| open(&pool, &HTTP1)).collect();
    let waiting = pool.turn(&HTTP1);
    tokio::pin!(waiting);
    assert!(waiting.as_mut().now_or_never().is_none());
    let (link, _far) = connection().await;
    opening.pop().flatten().expect("may open").done(&Link::Http1(link));
    assert!(matches!(waiting.now_or_never(), Some(Turn::Open(_))));
}

#[tokio::test]
async fn what_may_not_have_been_accepted_yet_counts_as_being_opened() {
    let pool = Pool::new(MOST_OPENING);
    open(&pool, &HTTP1).expect("may open").linger();
    let mut waiting = Box::pin(pool.turn(&HTTP1));
    assert!(waiting.as_mut().now_or_never().is_none());
    pool.accepted();
    assert!(matches!(waiting.now_or_never(), Some(Turn::Open(_))));
}

#[tokio::test]
async fn what_is_shared_is_opened_once_for_a_hundred() {
    for key in [&HTTP2, &EITHER] {
        let pool = Pool::new(1);
        pool.lock().shares = Some(true);
        let first = open(&pool, key);
        assert!(first.is_some());
        let mut waiting: Vec<_> = (0..STREAMS).map(|_| Box::pin(pool.turn(key))).collect();
        assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
        assert!(open(&pool, key).is_some());
    }
}

#[tokio::test]
async fn until_the_first_handshake_is_over_all_wait_for_it() {
    let pool = Pool::new(1);
    let first = open(&pool, &EITHER).expect("may open");
    let mut waiting: Vec<_> = (0..3 * STREAMS).map(|_| Box::pin(pool.turn(&EITHER))).collect();
    assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
    let (link, _far) = connection().await;
    first.done(&Link::Http1(link));
    let turns: Vec<_> = waiting.iter_mut().filter_map(|waiting| waiting.now_or_never()).collect();
    assert_eq!(turns.len(), MOST_OPENING);
}

#[tokio::test]
async fn a_connection_that_comes_back_goes_to_whoever_waits() {
    let pool = Pool::new(1);
    let _opening: Vec<_> = (0..MOST_OPENING).map(|_| open(&pool, &HTTP1)).collect();
    let mut left = Box::pin(pool.turn(&HTTP1));
    let mut next = Box::pin(pool.turn(&HTTP1));
    assert!(left.as_mut().now_or_never().is_none() && next.as_mut().now_or_never().is_none());
    let (link, _far) = connection().await;
    assert!(!pool.put(link));
    // Whoever leaves with something in hand leaves it to the next.
    drop(left);
    assert!(matches!(next.now_or_never(), Some(Turn::Take(Link::Http1(_)))));
}

#[tokio::test]
async fn whoever_waits_learns_of_a_failure_and_of_one_who_gave_up() {
    let pool = Pool::new(1);
    let first = open(&pool, &HTTP2).expect("may open");
    let mut waiting = Box::pin(pool.turn(&HTTP2));
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(first);
    let Some(Turn::Open(second)) = waiting.now_or_never() else { panic!("its turn has come") };
    let mut waiting = Box::pin(pool.turn(&HTTP2));
    assert!(waiting.as_mut().now_or_never().is_none());
    second.failed(&ConnectError::Refused(Arc::new(io::ErrorKind::ConnectionRefused.into())));
    assert!(matches!(waiting.now_or_never(), Some(Turn::Failed(ConnectError::Others(_)))));
    assert!(open(&pool, &HTTP2).is_some());
}
