//! Forwards the output of mpirun.

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    task::JoinHandle,
};

use crate::{
    output::{Output, Stream},
    tag_parser::TagParser,
};

/// Number of lines of mpirun itself to keep as evidence.
const KEPT_LINES: usize = 64;

/// Starts a task that forwards a stream of mpirun to the output, line by line. The task returns the first lines of mpirun
/// itself.
pub(super) fn relay(
    from: Option<impl AsyncRead + Unpin + Send + 'static>,
    stream: Stream,
    output: Output,
) -> JoinHandle<Vec<String>> {
    tokio::spawn(async move {
        let (mut parser, mut mpirun_lines) = (TagParser::default(), Vec::new());
        let mut buffer = vec![0; 64 << 10];
        let Some(mut from) = from else { return mpirun_lines };
        loop {
            let count = from.read(&mut buffer).await.unwrap_or(0);
            let lines = if count == 0 { parser.finish() } else { parser.push(&buffer[..count]) };
            for line in lines {
                if line.rank.is_none() && mpirun_lines.len() < KEPT_LINES {
                    mpirun_lines.push(line.text.clone());
                }
                output.job_line(line.rank, stream, line.text).await;
            }
            if count == 0 {
                return mpirun_lines;
            }
        }
    })
}
