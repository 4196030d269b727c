import io.grpc.Status;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.DefaultX509Source;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.logging.Handler;
import java.util.logging.LogRecord;
import java.util.logging.Logger;

/**
 * A workload that uses java-spiffe, and says what it saw, one JSON object a line: each SVID of a watch, which the
 * library opens again whenever it ends, and the status it ended with. At each line that it is sent it asks once more,
 * and says what an X509Source holds beside it.
 */
public final class Client {
    // Strong references: the log manager's are weak.
    private static final Logger ALL = Logger.getLogger("");
    private static final Logger STREAMS = Logger.getLogger("io.spiffe.workloadapi.StreamObservers");

    private static synchronized void say(String line) {
        System.out.println(line);
        System.out.flush();
    }

    private static String serial(X509Svid svid) {
        return svid.getLeaf().getSerialNumber().toString(16);
    }

    private static String status(Throwable error) {
        return Status.fromThrowable(error).getCode().name();
    }

    /** The library tells a watcher of no end that it retries, but its log; of the source's stream as well. */
    private static final class Ends extends Handler {
        @Override
        public void publish(LogRecord record) {
            if (record.getThrown() != null) {
                say("{\"ended\": \"" + status(record.getThrown()) + "\"}");
            }
        }

        @Override
        public void flush() {}

        @Override
        public void close() {}
    }

    public static void main(String[] arguments) throws Exception {
        for (Handler handler : ALL.getHandlers()) {
            ALL.removeHandler(handler);
        }
        String address = arguments[0];
        // Before the log is listened to: its stream ends with the other, and would be counted twice.
        DefaultX509Source source = DefaultX509Source.newSource(
            DefaultX509Source.X509SourceOptions.builder().spiffeSocketPath(address).build());
        WorkloadApiClient client = DefaultWorkloadApiClient.newClient(
            DefaultWorkloadApiClient.ClientOptions.builder().spiffeSocketPath(address).build());
        STREAMS.addHandler(new Ends());
        client.watchX509Context(new Watcher<X509Context>() {
            @Override
            public void onUpdate(X509Context context) {
                say("{\"serial\": \"" + serial(context.getDefaultSvid()) + "\"}");
            }

            @Override
            public void onError(Throwable error) {
                say("{\"ended\": \"" + status(error) + " for good\"}");
            }
        });
        BufferedReader asked = new BufferedReader(new InputStreamReader(System.in));
        while (asked.readLine() != null) {
            String fetched;
            try {
                fetched = serial(client.fetchX509Context().getDefaultSvid());
            } catch (Exception error) {
                fetched = status(error);
            }
            say("{\"fetched\": \"" + fetched + "\", \"held\": \"" + serial(source.getX509Svid()) + "\"}");
        }
        System.exit(0);
    }
}
