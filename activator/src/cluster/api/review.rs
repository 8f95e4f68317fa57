//! What a TokenReview and a SubjectAccessReview say. "Authenticated" alone is not enough: a token for the API
//! server itself is that too, so the audience must come back.

use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use k8s_openapi::api::authorization::v1::SubjectAccessReviewStatus;
use podlight_proto::{AUDIENCE, PodUid};

use super::Reviewed;

/// Extra key that names the pod a token is bound to.
pub(super) const POD_NAME: &str = "authentication.kubernetes.io/pod-name";

/// Extra key that holds that pod's uid.
pub(super) const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Why a token is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotGood {
    #[error("the API server does not accept the token")]
    NotAuthenticated,
    #[error("the token is not for the audience podlight")]
    Audience,
    #[error("the token is not a ServiceAccount's")]
    NotServiceAccount,
    #[error("the token names its pod only in part")]
    HalfBound,
}

/// Reads the answer to a TokenReview.
pub(super) fn judge_token(status: TokenReviewStatus) -> Result<Reviewed, NotGood> {
    if status.authenticated != Some(true) {
        return Err(NotGood::NotAuthenticated);
    }
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(NotGood::Audience);
    }
    let user = status.user.unwrap_or_default();
    let username = user.username.unwrap_or_default();
    let parts: Vec<&str> = username.split(':').collect();
    let (namespace, service_account) = match parts.as_slice() {
        ["system", "serviceaccount", namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            ((*namespace).to_owned(), (*name).to_owned())
        }
        _ => return Err(NotGood::NotServiceAccount),
    };
    let extra = user.extra.unwrap_or_default();
    let (pod_name, pod_uid) = match (extra.get(POD_NAME), extra.get(POD_UID)) {
        (None, None) => (None, None),
        (Some(names), Some(uids)) => match (names.as_slice(), uids.as_slice()) {
            ([name], [uid]) => (Some(name.clone()), Some(PodUid::new(uid).ok_or(NotGood::HalfBound)?)),
            _ => return Err(NotGood::HalfBound),
        },
        _ => return Err(NotGood::HalfBound),
    };
    let groups = user.groups.unwrap_or_default();
    Ok(Reviewed { namespace, service_account, pod_name, pod_uid, username, groups, extra })
}

/// Reads the answer to a SubjectAccessReview.
pub(super) fn judge_access(status: &SubjectAccessReviewStatus) -> bool {
    status.allowed && status.denied != Some(true)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn token_status(change: impl FnOnce(&mut Value)) -> TokenReviewStatus {
        let mut status = json!({
            "authenticated": true,
            "audiences": ["podlight"],
            "user": {
                "username": "system:serviceaccount:shop:web",
                "uid": "sa-uid",
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "extra": {POD_NAME: ["web-1"], POD_UID: ["uid-1"], "authentication.kubernetes.io/credential-id": ["JTI=x"]}
            }
        });
        change(&mut status);
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn a_good_token_names_its_account_and_pod() {
        let reviewed = judge_token(token_status(|_| {})).unwrap();
        assert_eq!((reviewed.namespace.as_str(), reviewed.service_account.as_str()), ("shop", "web"));
        assert_eq!(reviewed.pod_name.as_deref(), Some("web-1"));
        assert_eq!(reviewed.pod_uid, PodUid::new("uid-1"));
        assert_eq!(reviewed.groups.len(), 2);
        assert_eq!(reviewed.extra.len(), 3);
    }

    #[test]
    fn a_token_bound_to_no_pod_is_good_but_names_none() {
        let reviewed = judge_token(token_status(|s| s["user"]["extra"] = json!({}))).unwrap();
        assert_eq!((reviewed.pod_name, reviewed.pod_uid), (None, None));
    }

    #[test]
    fn anything_less_is_not_good() {
        type Change = fn(&mut Value);
        let cases: [(&str, Change, NotGood); 11] = [
            ("refused", |s| s["authenticated"] = json!(false), NotGood::NotAuthenticated),
            ("empty status", |s| *s = json!({}), NotGood::NotAuthenticated),
            ("for the API server", |s| s["audiences"] = json!(null), NotGood::Audience),
            ("no audience", |s| s["audiences"] = json!([]), NotGood::Audience),
            ("other audience", |s| s["audiences"] = json!(["podlight2"]), NotGood::Audience),
            ("a user", |s| s["user"]["username"] = json!("jane"), NotGood::NotServiceAccount),
            (
                "five parts",
                |s| s["user"]["username"] = json!("system:serviceaccount:a:b:c"),
                NotGood::NotServiceAccount,
            ),
            ("a node", |s| s["user"]["username"] = json!("system:node:a:b"), NotGood::NotServiceAccount),
            ("no pod uid", |s| s["user"]["extra"] = json!({POD_NAME: ["web-1"]}), NotGood::HalfBound),
            ("two pod names", |s| s["user"]["extra"][POD_NAME] = json!(["a", "b"]), NotGood::HalfBound),
            ("a uid that is none", |s| s["user"]["extra"][POD_UID] = json!(["../x"]), NotGood::HalfBound),
        ];
        for (name, change, expected) in cases {
            assert_eq!(judge_token(token_status(change)), Err(expected), "{name}");
        }
    }

    #[test]
    fn access_needs_allowed_and_no_denial() {
        let judge = |status: Value| judge_access(&serde_json::from_value(status).unwrap());
        assert!(judge(json!({"allowed": true})));
        assert!(!judge(json!({"allowed": false})));
        assert!(!judge(json!({"allowed": true, "denied": true})));
        assert!(!judge(json!({"allowed": false, "evaluationError": "webhook"})));
    }
}
