//! The `keystead` binary: server and command line in one.

/// It costs less processor time per request than glibc's (`docs/performance.md`). How it is set up is in
/// `.cargo/config.toml`. It has the names of C's: the compiler knows those, and makes one `calloc`, which touches
/// nothing, of an allocation that is filled with zeros.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    std::process::exit(keystead::cli::main(std::env::args_os().collect()));
}
