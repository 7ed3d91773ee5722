//! What build scripts need of `protoc`: compiles protos into a descriptor set, with the arguments that prost-build gives.

#![deny(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match compile(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn compile(mut args: impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    let (mut includes, mut files, mut out) = (Vec::new(), Vec::new(), None);
    let (mut imports, mut source_info) = (false, false);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--include_imports" => imports = true,
            "--include_source_info" => source_info = true,
            "--experimental_allow_proto3_optional" => {} // always allowed here
            "-o" => out = args.next(),
            "-I" => includes.extend(args.next()),
            _ => {
                if let Some(path) = arg.strip_prefix("--descriptor_set_out=") {
                    out = Some(path.to_owned());
                } else if let Some(path) = arg.strip_prefix("--proto_path=").or_else(|| arg.strip_prefix("-I")) {
                    includes.push(path.to_owned());
                } else if arg.starts_with('-') {
                    return Err(format!("{arg} is not known to this stand-in for protoc").into());
                } else {
                    files.push(PathBuf::from(arg));
                }
            }
        }
    }
    if includes.is_empty() {
        includes.push(".".to_owned());
    }
    let out = out.ok_or("-o is missing")?;
    let mut compiler = protox::Compiler::new(includes)?;
    compiler.include_imports(imports).include_source_info(source_info).open_files(files)?;
    std::fs::write(&out, compiler.encode_file_descriptor_set()).map_err(|error| format!("{out}: {error}"))?;
    Ok(())
}
