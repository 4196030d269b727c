// A workload that uses the `spiffe` crate, and says what it saw, one JSON object a line: each SVID of a stream that is
// opened again whenever it ends, and the status it ended with. At each line that it is sent it asks once more, and says
// what an X509Source holds beside it.

use std::time::Duration;

use futures::StreamExt;
use spiffe::transport::TransportError;
use spiffe::{WorkloadApiClient, WorkloadApiError, X509Source, X509Svid};
use tokio::io::{AsyncBufReadExt, BufReader};

const PAUSE: Duration = Duration::from_millis(200);

fn serial(svid: &X509Svid) -> String {
    let (_, leaf) = x509_parser::parse_x509_certificate(svid.leaf().as_bytes()).expect("a certificate");
    format!("{:x}", leaf.serial)
}

fn status(error: &WorkloadApiError) -> String {
    match error {
        WorkloadApiError::Transport(TransportError::Status(status)) => status.code().as_str().to_uppercase(),
        WorkloadApiError::Transport(TransportError::Connect(_)) => "not connected".to_string(),
        WorkloadApiError::PermissionDenied(_) | WorkloadApiError::NoIdentityIssued => "PERMISSION_DENIED".to_string(),
        other => other.to_string(),
    }
}

async fn streamed(client: &WorkloadApiClient) -> Result<(), WorkloadApiError> {
    let mut contexts = client.stream_x509_contexts().await?;
    while let Some(context) = contexts.next().await {
        match context?.default_svid() {
            Some(svid) => println!("{{\"serial\": \"{}\"}}", serial(svid)),
            None => println!("{{\"ended\": \"no SVID\"}}"),
        }
    }
    Ok(())
}

async fn follow(client: WorkloadApiClient) {
    loop {
        let ended = match streamed(&client).await {
            Ok(()) => "OK".to_string(),
            Err(error) => status(&error),
        };
        println!("{{\"ended\": \"{ended}\"}}");
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let address = std::env::args().nth(1).expect("the address of a Workload API");
    let client = WorkloadApiClient::connect_to(&address).await.expect("a client");
    let source = X509Source::builder().endpoint(&address).build().await.expect("a source");
    tokio::spawn(follow(client.clone()));
    let mut asked = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(_)) = asked.next_line().await {
        let fetched = match client.fetch_x509_svid().await {
            Ok(svid) => serial(&svid),
            Err(error) => status(&error),
        };
        let held = source.svid().map(|svid| serial(&svid)).unwrap_or_default();
        println!("{{\"fetched\": \"{fetched}\", \"held\": \"{held}\"}}");
    }
}
