//! arinar-data
use clap::Parser;
#[derive(Parser)]
enum Cli {
    TrainVae(arinar_data::train_vae::TrainVaeArgs),
}
fn main() -> anyhow::Result<()> {
    match Cli::parse() {
        Cli::TrainVae(a) => arinar_data::train_vae::run(&a),
    }
}
