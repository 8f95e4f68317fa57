//! The app of the pods that the cluster suite creates, alone in its image: `podlight-testapp [serve] [key=value…]`.
//! `/ready` answers 200 or, after `/off` and until `/on`, 503; `/crash` ends the process, `/times` says when it began to
//! accept, `/slow/<ms>` answers after that long, and anything else is answered with the pod's name. `port=8080` is where,
//! `delay=300` milliseconds pass before it listens, and after SIGTERM it serves for another `linger=2000`. For Jobs,
//! `podlight-testapp work for=1000` ends after that long; for exec probes, `podlight-testapp check port=8080` asks `/ready`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use podlight_e2e::sender::now_ms;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Exit status of `/crash`.
const CRASHED: i32 = 3;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run())) {
        Ok(code) => code,
        Err(error) => {
            tell(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let word = arguments.first().filter(|first| !first.contains('=')).map_or("serve", String::as_str);
    let number = |key: &str, default: u64| -> Result<u64> {
        let given = arguments.iter().find_map(|argument| argument.strip_prefix(key)?.strip_prefix('='));
        given.map_or(Ok(default), |value| value.parse().with_context(|| format!("{key}={value}")))
    };
    let port = u16::try_from(number("port", 8080)?)?;
    match word {
        "serve" => {
            let [delay, linger] = [number("delay", 0)?, number("linger", 2000)?].map(Duration::from_millis);
            serve(port, delay, linger).await?;
            Ok(ExitCode::SUCCESS)
        }
        "work" => {
            sleep(Duration::from_millis(number("for", 1000)?)).await;
            Ok(ExitCode::SUCCESS)
        }
        "check" => Ok(if check(port).await? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        other => bail!("{other:?} is neither serve, work nor check"),
    }
}

struct App {
    pod: String,
    ready: AtomicBool,
    accepting_ms: u64,
}

async fn serve(port: u16, delay: Duration, linger: Duration) -> Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        () = sleep(delay) => {}
        _ = terminated.recv() => return Ok(()),
    }
    let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await?;
    let pod = std::env::var("HOSTNAME").unwrap_or_default();
    let app = Arc::new(App { pod, ready: AtomicBool::new(true), accepting_ms: now_ms() });
    tell(&format!("accepting at {}", app.accepting_ms));
    let (ending, _) = watch::channel(false);
    let mut connections = JoinSet::new();
    let end = async {
        terminated.recv().await;
        tell(&format!("told to end at {}", now_ms()));
        sleep(linger).await;
    };
    tokio::pin!(end);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                connections.spawn(answer_all(stream, Arc::clone(&app), ending.subscribe()));
            }
            () = &mut end => break,
            // Whoever is done is forgotten; what went wrong on a connection was its client's to notice.
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    ending.send_replace(true);
    while connections.join_next().await.is_some() {}
    tell(&format!("ends at {}", now_ms()));
    Ok(())
}

async fn answer_all(stream: TcpStream, app: Arc<App>, mut ending: watch::Receiver<bool>) {
    let service = service_fn(move |request| answer(Arc::clone(&app), request));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let told_to_end = async { drop(ending.wait_for(|ending| *ending).await) };
    tokio::select! {
        _ = &mut connection => {}
        () = told_to_end => {
            connection.as_mut().graceful_shutdown();
            // The client's to notice.
            drop(connection.await);
        }
    }
}

async fn answer(app: Arc<App>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (mut status, mut text) = (StatusCode::OK, app.pod.clone());
    match request.uri().path() {
        "/ready" if !app.ready.load(Ordering::SeqCst) => status = StatusCode::SERVICE_UNAVAILABLE,
        "/off" => app.ready.store(false, Ordering::SeqCst),
        "/on" => app.ready.store(true, Ordering::SeqCst),
        "/crash" => std::process::exit(CRASHED),
        "/times" => text = app.accepting_ms.to_string(),
        other => {
            if let Some(wait) = other.strip_prefix("/slow/").and_then(|wait| wait.parse().ok()) {
                sleep(Duration::from_millis(wait)).await;
            }
        }
    }
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    Ok(response)
}

async fn check(port: u16) -> Result<bool> {
    let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    let (mut sender, connection) = client::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/ready").header(HOST, "localhost").body(Empty::<Bytes>::new())?;
    Ok(sender.send_request(request).await?.status() == StatusCode::OK)
}

fn tell(text: &str) {
    use std::io::Write as _;
    // Nobody is left to tell when stderr is closed.
    let _ = writeln!(std::io::stderr(), "podlight-testapp: {text}");
}
