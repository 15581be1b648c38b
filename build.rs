//! Forwards what nginx was built with as `ngx_feature` and `ngx_os` cfgs: a module that names a symbol its nginx
//! lacks does not load at all.

fn main() {
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
