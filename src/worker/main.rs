use std::process::ExitCode;

/// Events are often allocated on one thread and freed on another, the slowest case for the C library's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    push_stream_worker::cli::main()
}
