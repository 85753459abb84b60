//! The API: requests over HTTP go in, answers or problems come out. The only room that knows axum; everything is done by
//! [`crate::Handle`]. One file per group of routes; the wire's types are converted here.

mod auth;
mod body;
mod error;
mod hardware;
mod health;
mod listen;
mod metrics;
mod models;
mod oip;
mod openai;
mod openapi;
mod rerank;
mod resources;
mod status;
mod tasks;
mod texts;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

use crate::hardware::{fitness, live};
use crate::{Handle, StartError, config};

/// How often the latest sample is looked at; samples are taken every few seconds.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long open connections have to end after the last task is done.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// An address that is bound and not served yet.
pub struct Server {
    listener: std::net::TcpListener,
    address: SocketAddr,
    options: config::Http,
    hardware: crate::hardware::Options,
    /// The links to coordinators that `/status` shows.
    pub(crate) links: Option<crate::link::Handle>,
}

/// What the routes share.
struct App {
    handle: Handle,
    options: config::Http,
    door: auth::Door,
    bodies: body::Budget,
    kept: tasks::Kept,
    hardware: crate::hardware::Options,
    profile: OnceCell<crate::hardware::Profile>,
    live: live::Handle,
    links: Option<crate::link::Handle>,
    /// The API's description as JSON.
    description: bytes::Bytes,
}

type Shared = Arc<App>;

impl Server {
    /// Binds the address.
    ///
    /// # Errors
    /// When it cannot be had, or others could reach it without a key.
    pub(crate) fn bind(options: config::Http, hardware: crate::hardware::Options) -> Result<Self, StartError> {
        auth::check(&options)?;
        let bind = |error| StartError::Bind { address: options.address, error };
        let listener = std::net::TcpListener::bind(options.address).map_err(bind)?;
        listener.set_nonblocking(true).map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        Ok(Self { listener, address, options, hardware, links: None })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `close` is cancelled and the connections have ended, or a little longer.
    pub(crate) async fn serve(self, handle: Handle, close: CancellationToken) -> std::io::Result<()> {
        let Self { listener, address, options, hardware, links } = self;
        let listener = listen::Limited::new(tokio::net::TcpListener::from_std(listener)?, options.connections_max);
        let live = live::Options {
            probe: hardware.probe.clone(),
            nvml_library: hardware.nvml_library.clone(),
            ..live::Options::new(&hardware.storage_path)
        };
        let app = Arc::new(App {
            door: auth::Door::new(&options, address),
            bodies: body::Budget::new(options.bodies_bytes_max),
            kept: tasks::Kept::new(&options),
            handle,
            options,
            profile: OnceCell::new(),
            live: live::spawn(live),
            links,
            description: openapi::text(routes().into_openapi()),
            hardware,
        });
        let watching = watch(app.handle.clone(), app.live.clone());
        tracing::info!("the API listens on http://{address}");
        let closing = close.clone();
        let serving = axum::serve(listener, router(&app))
            .with_graceful_shutdown(async move { closing.cancelled().await })
            .into_future();
        let too_late = async {
            close.cancelled().await;
            tokio::time::sleep(CLOSE_TIMEOUT).await;
        };
        tokio::select! {
            served = serving => served,
            () = too_late => Ok(()),
            () = watching => Ok(()),
        }
    }
}

/// Judges every sample of the machine, for as long as it is polled.
async fn watch(handle: Handle, live: live::Handle) {
    let mut fitness = fitness::Fitness::default();
    loop {
        handle.set_unfit(fitness.judge(&live.latest()));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn router(app: &Shared) -> Router {
    let (router, _) = routes().split_for_parts();
    router
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(error::panicked))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(app), auth::guard))
        // Bodies are read by `body`, which has the one limit.
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(Arc::clone(app))
}

/// Every group of routes, one line each.
fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(openapi::description())
        .merge(health::routes())
        .merge(status::routes())
        .merge(hardware::routes())
        .merge(tasks::routes())
        .merge(resources::routes())
        .merge(metrics::routes())
        .merge(models::routes())
        .merge(openai::routes())
        .merge(texts::routes())
        .merge(rerank::routes())
        .merge(oip::routes())
        .merge(openapi::routes())
}
