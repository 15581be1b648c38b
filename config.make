# Part of nginx's configure, see config: the rule of the archive that nginx, or the module's shared object, is linked with.
# Whether there is something to do, cargo knows.

cat << END                                                    >> $NGX_MAKEFILE

$push_stream_archive: push-stream-cargo

.PHONY: push-stream-cargo
push-stream-cargo:
	cd $ngx_addon_dir && \\
	NGINX_SOURCE_DIR="$PWD" NGINX_BUILD_DIR="$(cd "$NGX_OBJS" && pwd)" \\
	${CARGO:-cargo} rustc --release --locked $CARGO_FLAGS -p ngx_http_push_stream_module --lib \\
		--no-default-features --features "${PUSH_STREAM_FEATURES-zstd}" --crate-type staticlib --target-dir "$(cd "$NGX_OBJS" && pwd)/push-stream"

END
