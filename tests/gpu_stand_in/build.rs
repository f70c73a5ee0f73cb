//! Links the library with `nodelete`, which keeps it in memory once it is loaded. Otherwise a program that only probes
//! for it and closes it again would unmap the code of the stream threads.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
