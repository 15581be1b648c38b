//! Passes nginx's build options on as `ngx_feature` and `ngx_os` cfgs: a module that refers to a symbol missing from
//! its nginx does not load at all.

fn main() {
    println!("cargo::rustc-env=PUSH_STREAM_COMMIT={}", commit());
    for (variable, cfg, known) in [
        ("DEP_NGINX_FEATURES", "ngx_feature", "DEP_NGINX_FEATURES_CHECK"),
        ("DEP_NGINX_OS", "ngx_os", "DEP_NGINX_OS_CHECK"),
    ] {
        println!("cargo::rerun-if-env-changed={variable}");
        if let Ok(values) = std::env::var(known) {
            println!("cargo::rustc-check-cfg=cfg({cfg}, values({values}))");
        }
        if let Ok(values) = std::env::var(variable) {
            for value in values.split(',').map(str::trim).filter(|value| !value.is_empty()) {
                println!("cargo::rustc-cfg={cfg}=\"{value}\"");
            }
        }
    }
}

/// The commit being built, for the statistics' headers: from the environment, else from git, else unknown.
fn commit() -> String {
    println!("cargo::rerun-if-env-changed=PUSH_STREAM_COMMIT");
    println!("cargo::rerun-if-changed=.git/HEAD");
    if let Ok(commit) = std::env::var("PUSH_STREAM_COMMIT") {
        return commit;
    }
    let git = std::process::Command::new("git").args(["rev-parse", "HEAD"]).output();
    git.ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or("unknown".into(), |commit| commit.trim().to_string())
}
