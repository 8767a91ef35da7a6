//! The `keystead` binary: server and command line in one.

fn main() {
    std::process::exit(keystead::cli::main(std::env::args_os().collect()));
}
