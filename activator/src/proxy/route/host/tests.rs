use super::*;

#[test]
fn ports_case_and_one_trailing_dot_make_no_difference() {
    for sent in ["web.example.com", "WEB.Example.COM", "web.example.com.", "web.example.com:8080", "Web.example.com.:1"]
    {
        assert_eq!(normal(sent).as_deref(), Some("web.example.com"), "{sent}");
    }
    assert!(matches!(normal("web.example.com:80"), Some(Cow::Borrowed(_))));
}

#[test]
fn case_15_addresses_are_compared_parsed_not_as_text() {
    for sent in ["[::1]", "[0:0::1]:8080", "[0000:0000:0000:0000:0000:0000:0000:0001]"] {
        assert_eq!(normal(sent).as_deref(), Some("::1"), "{sent}");
    }
    assert_eq!(normal("[::ffff:10.0.0.1]:80").as_deref(), Some("10.0.0.1"));
    assert_eq!(HostPattern::parse("fd00::0001"), HostPattern::parse("[fd00:0::1]"));
    assert_eq!(normal("[fe80::1%eth0]"), None);
    assert_eq!(normal("[fe80::1%25eth0]:80"), None);
}

#[test]
fn what_is_no_host_is_refused() {
    let long_label = format!("{}.example.com", "a".repeat(64));
    let long = format!("{}com", "a.".repeat(126));
    let malformed = [
        "",
        ".",
        "..",
        "a..b",
        ".a",
        "a..",
        " a",
        "a b",
        "a\t",
        "a/b",
        "a?b",
        "a#b",
        "a%41",
        "user@a",
        "user:pw@a",
        "a,b",
        "a:b",
        "a:",
        "a:0",
        "a:65536",
        "a:080808",
        "a:+80",
        "a:80:80",
        "::1",
        "[::1",
        "[::1]80",
        "[::1]:",
        "[10.0.0.1]",
        "[]",
        "bücher.example",
        "a\0b",
        "*.example.com",
        "a;b",
        "a'b",
        &long_label,
        &long,
    ];
    for sent in malformed {
        assert_eq!(normal(sent), None, "{sent:?}");
    }
}

#[test]
fn patterns_are_hosts_or_suffixes_without_ports() {
    assert_eq!(HostPattern::parse("*.Example.com"), Some(HostPattern::Below("example.com".into())));
    assert_eq!(HostPattern::parse("a_b.example.com."), Some(HostPattern::Exact("a_b.example.com".into())));
    for pattern in ["*", "*.", "*.*.com", "a.*.com", "*example.com", "example.com:80", "", "http://example.com"] {
        assert_eq!(HostPattern::parse(pattern), None, "{pattern}");
    }
}
