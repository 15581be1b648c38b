use std::process::ExitCode;

/// Events may be made on one thread and freed on another, which is what the C library's allocator is slowest at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    push_stream_worker::cli::main()
}
