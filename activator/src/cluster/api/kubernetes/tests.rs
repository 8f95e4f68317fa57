use http::{Request, Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::cluster::Api;

/// What the API server does with a request.
#[derive(Debug, Clone)]
enum Answer {
    Json(u16, Value),
    Reset,
    Never,
}

/// An API server that always does the same.
fn mk_api(answer: Answer) -> (KubernetesApi, Health) {
    let service = tower::service_fn(move |_: Request<Body>| {
        let answer = answer.clone();
        async move {
            match answer {
                Answer::Json(status, body) => {
                    let status = StatusCode::from_u16(status).unwrap();
                    let body = Body::from(body.to_string().into_bytes());
                    Ok(Response::builder().status(status).body(body).unwrap())
                }
                Answer::Reset => Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
                Answer::Never => std::future::pending().await,
            }
        }
    });
    let health = Health::unknown();
    let client = kube::Client::new(service, "default");
    (KubernetesApi::new(client, RevisionLabels::default(), health.clone()), health)
}

fn failure(status: u16) -> Answer {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": if status == 404 { "NotFound" } else { "" }, "code": status});
    Answer::Json(status, body)
}

fn reviewed() -> Answer {
    Answer::Json(
        201,
        json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": {"token": ""},
        "status": {"authenticated": true, "audiences": ["podlight"], "user": {"username": "system:serviceaccount:a:b"}}}),
    )
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_cannot_answer_is_no_rejection() {
    let cases = [
        (failure(401), "own-credential", true),
        (failure(403), "own-credential", true),
        (failure(429), "unavailable", true),
        (failure(500), "unavailable", true),
        (failure(503), "unavailable", true),
        (failure(404), "unavailable", true),
        (Answer::Json(201, json!(5)), "unavailable", true),
        (Answer::Reset, "unavailable", false),
        (Answer::Never, "unavailable", false),
    ];
    for (answer, expected, answered) in cases {
        let name = format!("{answer:?}");
        let (api, health) = mk_api(answer);
        let error = api.review_token("t").await.unwrap_err();
        assert_eq!((error.label(), health.reachable()), (expected, answered), "{name}");
    }
}

#[tokio::test]
async fn a_review_that_says_no_is_a_rejection() {
    let (api, health) = mk_api(reviewed());
    assert_eq!(api.review_token("t").await.unwrap().service_account, "b");
    let refusal = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": {"token": ""},
        "status": {"authenticated": false, "error": "expired"}});
    let (api, _) = mk_api(Answer::Json(201, refusal));
    assert!(matches!(api.review_token("t").await, Err(ApiError::Rejected(_))));
    assert!(health.reachable());
}

#[tokio::test]
async fn a_pod_that_is_not_there_is_none() {
    let (api, _) = mk_api(failure(404));
    assert!(api.fetch_pod("shop", "web-1").await.unwrap().is_none());
    let pod = json!({"metadata": {"namespace": "shop", "name": "web-1", "uid": "u", "resourceVersion": "9"}});
    let (api, _) = mk_api(Answer::Json(200, pod));
    assert_eq!(api.fetch_pod("shop", "web-1").await.unwrap().unwrap().resource_version, 9);
    let (api, health) = mk_api(Answer::Json(200, json!({"metadata": {"namespace": "shop", "name": "web-1"}})));
    assert_eq!(api.fetch_pod("shop", "web-1").await.unwrap_err().label(), "unavailable");
    assert!(health.reachable());
}

#[tokio::test]
async fn access_is_what_the_review_allows() {
    let user = Reviewed::of_service_account("shop", "web", None);
    for allowed in [true, false] {
        let review = json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {}, "spec": {},
            "status": {"allowed": allowed}});
        let (api, _) = mk_api(Answer::Json(201, review));
        assert_eq!(api.authorize(&user, "/v1/targets").await.unwrap(), allowed);
    }
}

#[tokio::test]
async fn keys_and_issuer_come_through_the_api_connection() {
    let (api, _) = mk_api(Answer::Json(200, json!({"issuer": "https://x", "keys": []})));
    let api = Api::Kubernetes(Arc::new(api));
    assert!(serde_json::from_slice::<Value>(&api.fetch_jwks().await.unwrap()).unwrap()["keys"].is_array());
    assert_eq!(api.fetch_issuer().await.unwrap().as_deref(), Some("https://x"));
}

#[tokio::test(start_paused = true)]
async fn the_probe_tells_when_the_api_server_is_back() {
    let up = Arc::new(AtomicBool::new(false));
    let service = tower::service_fn({
        let up = Arc::clone(&up);
        move |_: Request<Body>| {
            let up = up.load(Ordering::Relaxed);
            async move {
                if !up {
                    return Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
                }
                Ok(Response::new(Body::from(b"ok".to_vec())))
            }
        }
    });
    let health = Health::local();
    let client = kube::Client::new(service, "default");
    let api = KubernetesApi::new(client, RevisionLabels::default(), health.clone());
    let (stop, shutdown) = tokio::sync::watch::channel(false);
    let mut recoveries = health.recoveries();
    let probe = tokio::spawn(api.probe(shutdown));
    tokio::time::advance(PROBE_EVERY / 2).await;
    assert!(!health.reachable());
    up.store(true, Ordering::Relaxed);
    recoveries.changed().await.unwrap();
    assert!(health.reachable());
    stop.send(true).unwrap();
    probe.await.unwrap();
}

#[tokio::test]
async fn a_secret_is_its_data_and_a_refusal_is_told_in_words() {
    let secret = |answer: Answer| async move { mk_api(answer).0.secret("shop", "ca").await };
    let data = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "ca"}, "data": {"ca.crt": "UEVN"}});
    assert_eq!(secret(Answer::Json(200, data)).await.unwrap()["ca.crt"], b"PEM");
    for (status, words) in [(403, "needs get"), (404, "there is no Secret ca in namespace shop")] {
        let error = secret(failure(status)).await.unwrap_err();
        assert!(matches!(&error, ApiError::Rejected(told) if told.contains(words)), "{error}");
    }
    for answer in [failure(401), failure(429), failure(500), Answer::Reset, Answer::Json(200, json!({"data": 5}))] {
        let name = format!("{answer:?}");
        assert_eq!(secret(answer).await.unwrap_err().label(), "unavailable", "{name}");
    }
    let api = Api::Kubernetes(Arc::new(mk_api(Answer::Never).0));
    for name in ["", "../pods/x", "a?b"] {
        assert_eq!(api.secret("shop", name).await.unwrap_err().label(), "rejected", "{name:?}");
    }
}
