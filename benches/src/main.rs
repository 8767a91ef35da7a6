//! Keystead beside its limits: throughput, latency, processor time, memory and disk of real clusters.
//!
//! `benches/run [--quick] [--seconds N] [--secrets N] [--format=json] [--strict] [--binary FILE] [NAME]...`
//!
//! Every figure has a name such as `three/leader/get/128`; a NAME given measures those whose names contain it,
//! none measures all. Beside each rate stand, from the same run, (a) a bare axum and rustls server that answers
//! the same bytes, measured before and after it, and (b) raw group-committed appends. Any request that is not
//! answered with success ends the run with an error. With `--strict` so does a figure that is not what it is to be.

mod append;
mod args;
mod bare;
mod lifecycle;
mod load;
mod rates;
mod report;
mod requests;
mod snapshot;
mod token;
mod usage;

use args::Args;

/// What ends a run.
type Error = Box<dyn std::error::Error + Send + Sync>;
/// Everything here either works or ends the run.
type Result<T> = std::result::Result<T, Error>;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut words = std::env::args().skip(1).peekable();
    if words.next_if(|word| word == bare::ROLE).is_some() {
        return runtime.block_on(bare::serve(words));
    }
    let args = Args::parse(words)?;
    let mut report = report::Report::new(args.json);
    runtime.block_on(async {
        Box::pin(rates::all(&args, &mut report)).await?;
        Box::pin(lifecycle::all(&args, &mut report)).await
    })?;
    report.end()?;
    match report.missed() {
        0 => Ok(()),
        missed if args.strict => Err(format!("{missed} figures are not what they are to be").into()),
        _ => Ok(()),
    }
}
