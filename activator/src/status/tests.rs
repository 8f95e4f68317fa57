use serde_json::{Value, json};

use super::*;

fn endpoint(name: &str, state: &str, age_ms: u64) -> Value {
    json!({
        "pod": {"name": name, "uid": format!("uid-{name}")}, "state": state, "source": "pushed", "since_ms": 5,
        "age_ms": age_ms, "addresses": ["10.0.0.1", "fd00::1"], "ports": [{"name": "http", "port": 8080}], "revision": "",
    })
}

fn event(name: &str, data: Value) -> ServerEvent {
    ServerEvent { name: name.to_owned(), id: None, data: data.to_string() }
}

fn state(endpoints: &[Value]) -> ServerEvent {
    event("state", json!({"namespace": "shop", "service": "web", "endpoints": endpoints}))
}

fn changed(name: &str, endpoint: Value) -> ServerEvent {
    let data = json!({"namespace": "shop", "service": "web", "id": format!("uid-{name}"), "endpoint": endpoint});
    event("endpoint", data)
}

fn printed(events: &[ServerEvent]) -> Vec<String> {
    let mut out = Vec::new();
    let mut screen = Screen::new(&mut out);
    events.iter().try_for_each(|event| screen.take(event)).expect("makes sense");
    String::from_utf8(out).expect("text").lines().map(str::to_owned).collect()
}

fn synced(resumed: bool) -> ServerEvent {
    event("synced", json!({"replica": "a-0", "resumed": resumed}))
}

#[test]
fn the_table_has_a_line_an_endpoint() {
    let lines =
        printed(&[state(&[endpoint("web-0", "ready", 65_000), endpoint("web-1", "not-ready", 1)]), synced(false)]);
    assert_eq!(
        lines,
        [
            "NAMESPACE   SERVICE   POD     STATE         SOURCE     AGE    ADDRESSES          PORTS       REVISION   UID",
            "shop        web       web-0   ready         pushed     65s    10.0.0.1,fd00::1   http:8080   -          uid-web-0",
            "shop        web       web-1   not-ready     pushed     0s     10.0.0.1,fd00::1   http:8080   -          uid-web-1",
        ]
    );
}

#[test]
fn each_change_is_a_line_and_a_repeat_is_none() {
    let lines = printed(&[
        state(&[endpoint("web-0", "not-ready", 1)]),
        synced(false),
        changed("web-0", endpoint("web-0", "not-ready", 9)),
        changed("web-0", endpoint("web-0", "ready", 9)),
        event("endpoint-gone", json!({"namespace": "shop", "service": "web", "id": "uid-web-0"})),
        event("target-gone", json!({"namespace": "shop", "service": "web"})),
        event("something-new", json!({})),
    ]);
    let states: Vec<&str> = lines[1..].iter().filter_map(|line| line.split_whitespace().nth(3)).collect();
    assert_eq!(states, ["not-ready", "ready", "gone"]);
}

#[test]
fn a_second_full_state_shows_what_was_missed() {
    let lines = printed(&[
        state(&[endpoint("web-0", "ready", 1), endpoint("web-1", "ready", 1), endpoint("web-2", "ready", 1)]),
        synced(false),
        state(&[endpoint("web-0", "ready", 7), endpoint("web-1", "draining", 7)]),
        synced(false),
        synced(true),
    ]);
    let told: Vec<Vec<&str>> =
        lines[4..].iter().map(|line| line.split_whitespace().skip(2).take(2).collect()).collect();
    assert_eq!(told, [["web-2", "gone"], ["web-1", "draining"]]);
}

#[test]
fn a_target_that_goes_takes_its_endpoints_along() {
    let lines = printed(&[
        state(&[endpoint("web-0", "ready", 1)]),
        synced(false),
        event("target-gone", json!({"namespace": "shop", "service": "web"})),
    ]);
    assert!(lines[2].contains("gone"), "{lines:?}");
}

#[test]
fn an_endpoint_without_a_pod_goes_by_its_id() {
    let address = json!({
        "pod": null, "id": "s1/10.0.0.1", "state": "ready", "source": "observed", "since_ms": 0,
        "addresses": ["10.0.0.1"], "ports": [{"name": "", "port": 80}], "revision": "",
    });
    let lines = printed(&[
        state(&[address]),
        synced(false),
        event("endpoint-gone", json!({"namespace": "shop", "service": "web", "id": "s1/10.0.0.1"})),
    ]);
    assert_eq!(
        lines[1].split_whitespace().collect::<Vec<_>>()[2..],
        ["-", "ready", "observed", "-", "10.0.0.1", "80", "-", "-"]
    );
    assert!(lines[2].contains("gone"), "{lines:?}");
}
