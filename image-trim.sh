#!/bin/sh
# Takes out of an image's Python environment, the first argument, what is never read there. `make images-test` walks all
# that is left. With a second argument, "serving", also what only training needs.
set -eu
cd "$1"/lib/python*/site-packages

# Of the several hundred services that botocore describes: S3, and those that credentials come from.
if [ -d botocore/data ]; then
  find botocore/data -mindepth 1 -maxdepth 1 -type d \
    ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} +
fi
if [ -d scipy ]; then
  find scipy -type d -name tests -prune -exec rm -r {} +
fi
# Of the ziglang package its clang, and the headers that services/inlining/source.py names. A worker links programs with
# the rest where it has no other linker.
if [ -d ziglang ] && [ "${2:-}" = serving ]; then
  find ziglang/lib -type f \
    ! -path 'ziglang/lib/include/*' \
    ! -path 'ziglang/lib/libc/include/x86-linux-gnu/*' \
    ! -path 'ziglang/lib/libc/include/generic-glibc/*' \
    ! -path 'ziglang/lib/libc/include/x86-linux-any/*' \
    ! -path 'ziglang/lib/libc/include/any-linux-any/*' -delete
  find ziglang -type d -empty -delete
fi
