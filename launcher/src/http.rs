//! The HTTP server with GET /status (JSON) and GET /metrics (OpenMetrics text).

use std::net::SocketAddr;

use axum::{Json, Router, extract::State, http::header, response::IntoResponse, routing::get};
use tokio::net::TcpListener;

use crate::{
    metrics::metrics,
    status::{SharedStatus, Status},
    stop::Stop,
};

/// Starts the server, which runs as long as the process. Returns its address.
///
/// # Errors
/// The address cannot be bound.
pub(crate) async fn serve(address: SocketAddr, status: SharedStatus) -> Result<SocketAddr, Stop> {
    let unusable = |error| Stop::configuration(format!("--status-port {address}: {error}; choose another"));
    let listener = TcpListener::bind(address).await.map_err(unusable)?;
    let address = listener.local_addr().map_err(unusable)?;
    let router = Router::new()
        .route("/status", get(async |State(status): State<SharedStatus>| Json(status.lock().clone())))
        .route("/metrics", get(async |State(status): State<SharedStatus>| metrics_response(&status.lock().clone())))
        .with_state(status);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

fn metrics_response(status: &Status) -> impl IntoResponse + use<> {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], metrics(status))
}
