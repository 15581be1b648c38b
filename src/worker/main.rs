use std::process::ExitCode;

fn main() -> ExitCode {
    push_stream_worker::cli::main()
}
