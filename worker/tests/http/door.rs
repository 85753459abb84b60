//! Who may come in: with a key set, every route but the probes wants it; without one, only this machine is served.

use reqwest::Method;

use crate::api::send;
use crate::bench::{options, start, start_with};

const PROBES: [&str; 5] = ["/health/live", "/health/ready", "/health/startup", "/v2/health/live", "/v2/health/ready"];

#[tokio::test]
async fn with_a_key_every_route_but_the_probes_wants_it() {
    let bench = start_with(|options| options.http.api_key = Some("secret".into()));
    let with = |method: Method, path: &str, key: Option<&str>| {
        let request = bench.api.request(method, path);
        match key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    };
    let description = send(with(Method::GET, "/openapi.json", Some("secret"))).await.ok();
    let paths = description["paths"].as_object().unwrap().clone();
    assert!(paths.len() > 20);
    for (path, methods) in &paths {
        if PROBES.contains(&path.as_str()) {
            assert_eq!(send(with(Method::GET, path, None)).await.status, 200, "{path}");
            continue;
        }
        for method in methods.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            for key in [None, Some("secre"), Some("")] {
                let answer = send(with(method.clone(), path, key)).await;
                answer.problem(401, "unauthorized");
                assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            }
        }
    }
    for path in ["/", "/nothing/here", "/docs"] {
        send(with(Method::GET, path, None)).await.problem(401, "unauthorized");
    }
    send(with(Method::GET, "/status", Some("secret"))).await.ok();
}

#[tokio::test]
async fn without_a_key_other_hosts_and_the_pages_of_others_are_refused() {
    let bench = start();
    let get = |name: &str, value: &str| send(bench.api.request(Method::GET, "/status").header(name, value));
    get("host", "evil.example").await.problem(403, "forbidden");
    get("origin", "http://evil.example").await.problem(403, "forbidden");
    get("host", "localhost").await.ok();
}

#[tokio::test]
async fn an_open_address_without_a_key_is_refused_and_the_words_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let build = |set: &dyn Fn(&mut worker::config::Http)| {
        let mut options = options(folder.path());
        options.http.address = ([0, 0, 0, 0], 0).into();
        set(&mut options.http);
        worker::build(options).map(|_| ())
    };
    let error = build(&|_| {}).unwrap_err().to_string();
    for word in ["0.0.0.0", "API key", "127.0.0.1", "insecure"] {
        assert!(error.contains(word), "{error}");
    }
    build(&|http| http.api_key = Some("secret".into())).unwrap();
    build(&|http| http.insecure = true).unwrap();
    assert!(build(&|http| http.api_key = Some(String::new())).is_err(), "an empty key keeps nobody out");
}
