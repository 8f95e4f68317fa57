use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::client::Body;
use tokio::sync::mpsc;

use super::*;
use crate::cluster::{Health, RevisionLabels};

fn report(service: &str, message: &str) -> Report {
    let (service, uid) = (GroupKey::new("shop", service), "u-1".to_owned());
    Report { service, uid, reason: Reason::InvalidAnnotation, message: message.to_owned() }
}

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_same_words_are_not_said_again_for_a_while() {
    let mut held = Held::default();
    let first = report("web", "bad port");
    assert!(held.put(first.clone(), at(0)));
    assert_eq!(held.next(at(0)), Ok(first.clone()));
    held.put(first.clone(), at(1));
    assert_eq!(held.next(at(1)), Err(None));
    held.put(first.clone(), SAME_AFTER);
    assert_eq!(held.next(SAME_AFTER), Ok(first));
}

#[test]
fn of_words_that_change_quickly_the_last_are_said() {
    let mut held = Held::default();
    held.put(report("web", "a"), at(0));
    assert!(held.next(at(0)).is_ok());
    held.put(report("web", "b"), at(1));
    held.put(report("web", "c"), at(2));
    assert_eq!(held.next(at(2)), Err(Some(OTHER_AFTER)));
    assert_eq!(held.next(OTHER_AFTER), Ok(report("web", "c")));
    assert_eq!(held.next(OTHER_AFTER), Err(None));
}

#[test]
fn what_could_not_be_said_may_be_put_again() {
    let mut held = Held::default();
    held.put(report("web", "a"), at(0));
    let failed = held.next(at(0)).unwrap();
    held.forget(&failed);
    held.put(failed.clone(), at(1));
    assert_eq!(held.next(at(1)), Ok(failed));
}

#[test]
fn a_flood_of_faults_is_bounded_and_makes_room_when_it_is_old() {
    let mut held = Held::default();
    for n in 0..HELD_MAX {
        assert!(held.put(report(&format!("web-{n}"), "a"), at(0)));
    }
    assert!(!held.put(report("one-more", "a"), at(0)));
    assert!(held.next(at(0)).is_ok());
    assert!(!held.put(report("one-more", "a"), at(1)), "said lately");
    assert!(held.put(report("one-more", "a"), SAME_AFTER));
    assert_eq!(held.0.len(), HELD_MAX);
}

#[test]
fn an_event_names_its_service_and_is_the_same_from_every_replica() {
    let now = Timestamp::from_millisecond(1_767_323_045_678).unwrap();
    let (name, event) = event(&report("web", "bad port"), now);
    assert_eq!(name, "web.u-1.invalidannotation");
    assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("InvalidAnnotation")));
    assert_eq!(event["involvedObject"]["uid"], "u-1");
    assert_eq!((&event["message"], &event["lastTimestamp"]), (&json!("bad port"), &json!("2026-01-02T03:04:05Z")));
}

#[tokio::test(start_paused = true)]
async fn reports_are_sent_one_by_one_and_cut_to_what_an_event_takes() {
    let (calls, mut seen) = mpsc::unbounded_channel();
    let service = tower::service_fn(move |request: Request<Body>| {
        let calls = calls.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
            let body: Value = serde_json::from_slice(&body).map_err(std::io::Error::other)?;
            let refused = head.uri.path().contains("/web-0.");
            calls.send((head.uri.to_string(), body["message"].as_str().unwrap_or_default().len(), Instant::now())).ok();
            let status = if refused { StatusCode::FORBIDDEN } else { StatusCode::CREATED };
            Ok::<_, std::io::Error>(Response::builder().status(status).body(Body::from(b"{}".to_vec())).unwrap())
        }
    });
    let client = kube::Client::new(service, "default");
    let api = KubernetesApi::new(client, RevisionLabels::default(), Health::unknown());
    for n in 0..3 {
        api.outbox.put(&GroupKey::new("shop", &format!("web-{n}")), "u-1", Reason::HostConflict, &"ä".repeat(1000));
    }
    let (stop, shutdown) = tokio::sync::watch::channel(false);
    let task = tokio::spawn(api.send_reports(shutdown));
    let mut last: Option<Instant> = None;
    for _ in 0..3 {
        let (path, length, at) = seen.recv().await.unwrap();
        assert!(path.starts_with("/api/v1/namespaces/shop/events/web-"), "{path}");
        assert!(path.ends_with(".u-1.hostconflict?fieldManager=podlight&force=true"), "{path}");
        assert_eq!(length, MESSAGE_BYTES);
        assert!(last.is_none_or(|last| at - last >= PACE));
        last = Some(at);
    }
    stop.send(true).unwrap();
    task.await.unwrap();
}
