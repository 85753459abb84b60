//! The profile of the machine: looked at once, when somebody first asks, for it takes a second of all cores.

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use crate::hardware::Profile;

pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(profile))
}

/// What this machine is: processor, memory, GPUs, drivers, measured speed.
#[utoipa::path(get, path = "/api/hardware/profile", tag = "hardware", responses((status = 200, body = Profile)))]
async fn profile(State(app): State<Shared>) -> axum::Json<Profile> {
    let profile = app.profile.get_or_init(|| crate::hardware::profile(app.hardware.clone())).await;
    axum::Json(profile.clone())
}
