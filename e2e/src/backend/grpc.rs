//! The gRPC service `podlight.test.Echo`, written by hand so that no protoc is needed: unary, from the server, and both ways.

use std::pin::Pin;
use std::time::Duration;

use anyhow::Result;
use futures::{Stream, StreamExt, stream};
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tonic::client::Grpc as Client;
use tonic::codegen::BoxFuture;
use tonic::server::{Grpc, ServerStreamingService, StreamingService, UnaryService};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use super::answers::{Body, empty};

/// What paths of the service begin with.
pub const SERVICE: &str = "/podlight.test.Echo/";

/// A message, either way.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Said {
    /// What is said. In a request of [`EchoClient::say`], `fail:<code>` asks for that status.
    #[prost(string, tag = "1")]
    pub text: String,
    /// The pod that says it.
    #[prost(string, tag = "2")]
    pub pod: String,
    /// How many answers are asked for, or which one this is.
    #[prost(uint32, tag = "3")]
    pub number: u32,
}

#[derive(Clone)]
struct Echo {
    pod: String,
}

type Answers = Pin<Box<dyn Stream<Item = Result<Said, Status>> + Send>>;

/// Answers a request to the service.
pub(super) async fn answer(pod: &str, request: Request<Incoming>) -> Response<Body> {
    let echo = Echo { pod: pod.to_owned() };
    let method = request.uri().path().trim_start_matches(SERVICE).to_owned();
    let mut grpc = Grpc::new(ProstCodec::<Said, Said>::default());
    let response = match method.as_str() {
        "Say" => grpc.unary(Say(echo), request).await,
        "Repeat" => grpc.server_streaming(Repeat(echo), request).await,
        "Talk" => grpc.streaming(Talk(echo), request).await,
        _ => Status::new(Code::Unimplemented, method).into_http(),
    };
    if response.headers().contains_key("grpc-status") {
        return response.map(|_: tonic::body::Body| empty());
    }
    response.map(|body| body.map_err(anyhow::Error::from).boxed_unsync())
}

struct Say(Echo);

impl UnaryService<Said> for Say {
    type Response = Said;
    type Future = BoxFuture<tonic::Response<Said>, Status>;

    fn call(&mut self, request: tonic::Request<Said>) -> Self::Future {
        let pod = self.0.pod.clone();
        Box::pin(async move {
            let said = request.into_inner();
            match said.text.strip_prefix("fail:").map(str::parse::<i32>) {
                Some(Ok(code)) => Err(Status::new(Code::from(code), "as asked")),
                _ => Ok(tonic::Response::new(Said { pod, ..said })),
            }
        })
    }
}

struct Repeat(Echo);

impl ServerStreamingService<Said> for Repeat {
    type Response = Said;
    type ResponseStream = Answers;
    type Future = BoxFuture<tonic::Response<Answers>, Status>;

    fn call(&mut self, request: tonic::Request<Said>) -> Self::Future {
        let pod = self.0.pod.clone();
        Box::pin(async move {
            let said = request.into_inner();
            let answers =
                (0..said.number).map(move |number| Ok(Said { text: said.text.clone(), pod: pod.clone(), number }));
            Ok(tonic::Response::new(Box::pin(stream::iter(answers)) as Answers))
        })
    }
}

struct Talk(Echo);

impl StreamingService<Said> for Talk {
    type Response = Said;
    type ResponseStream = Answers;
    type Future = BoxFuture<tonic::Response<Answers>, Status>;

    fn call(&mut self, request: tonic::Request<Streaming<Said>>) -> Self::Future {
        let pod = self.0.pod.clone();
        Box::pin(async move {
            let answers = request.into_inner().map(move |said| said.map(|said| Said { pod: pod.clone(), ..said }));
            Ok(tonic::Response::new(Box::pin(answers) as Answers))
        })
    }
}

/// A client of the service.
pub struct EchoClient(Client<Channel>);

impl EchoClient {
    /// Connects over h2c to `proxy` for `host`.
    ///
    /// # Errors
    /// When it does not accept.
    pub async fn connect(proxy: std::net::SocketAddr, host: &str) -> Result<Self> {
        let origin: Uri = format!("http://{host}").parse()?;
        let endpoint =
            Endpoint::from_shared(format!("http://{proxy}"))?.origin(origin).timeout(Duration::from_secs(30));
        Ok(Self(Client::new(endpoint.connect().await?)))
    }

    /// One message, one answer.
    ///
    /// # Errors
    /// As the service, or the proxy, says.
    pub async fn say(&mut self, text: &str) -> Result<tonic::Response<Said>, Status> {
        let said = Said { text: text.to_owned(), ..Said::default() };
        let path = self.ready("Say").await?;
        self.0.unary(tonic::Request::new(said), path, ProstCodec::<Said, Said>::default()).await
    }

    /// One message, so many answers.
    ///
    /// # Errors
    /// As the service, or the proxy, says.
    pub async fn repeat(&mut self, text: &str, number: u32) -> Result<Streaming<Said>, Status> {
        let said = Said { text: text.to_owned(), number, ..Said::default() };
        let path = self.ready("Repeat").await?;
        let codec = ProstCodec::<Said, Said>::default();
        Ok(self.0.server_streaming(tonic::Request::new(said), path, codec).await?.into_inner())
    }

    /// Messages both ways.
    ///
    /// # Errors
    /// As the service, or the proxy, says.
    pub async fn talk(&mut self, said: impl Stream<Item = Said> + Send + 'static) -> Result<Streaming<Said>, Status> {
        let path = self.ready("Talk").await?;
        let codec = ProstCodec::<Said, Said>::default();
        Ok(self.0.streaming(tonic::Request::new(said), path, codec).await?.into_inner())
    }

    async fn ready(&mut self, method: &str) -> Result<http::uri::PathAndQuery, Status> {
        let failed = |error: &dyn std::fmt::Display| Status::unavailable(error.to_string());
        self.0.ready().await.map_err(|error| failed(&error))?;
        format!("{SERVICE}{method}").parse().map_err(|error: http::uri::InvalidUri| failed(&error))
    }
}
