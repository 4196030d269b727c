import java.io.ByteArrayInputStream;
import java.nio.file.FileSystems;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardWatchEventKinds;
import java.nio.file.WatchKey;
import java.nio.file.WatchService;
import java.security.cert.CertificateFactory;
import java.security.cert.X509Certificate;
import java.util.HashSet;
import java.util.Set;
import java.util.concurrent.TimeUnit;

/**
 * As watchers/main.go, with Java's WatchService on the volume's directory: what no event tells stays unknown. It ends
 * well when it has seen as many certificates as it was told, and badly as soon as the one that it would serve has ended.
 */
public final class Watch {
    private static final long LOOK_MILLISECONDS = 20;

    private static X509Certificate read(Path file) throws Exception {
        return (X509Certificate) CertificateFactory.getInstance("X.509")
            .generateCertificate(new ByteArrayInputStream(Files.readAllBytes(file)));
    }

    public static void main(String[] arguments) throws Exception {
        Path volume = Path.of(arguments[0]);
        int wanted = Integer.parseInt(arguments[1]);
        WatchService watcher = FileSystems.getDefault().newWatchService();
        volume.register(watcher, StandardWatchEventKinds.ENTRY_CREATE, StandardWatchEventKinds.ENTRY_MODIFY,
            StandardWatchEventKinds.ENTRY_DELETE);
        Set<String> serials = new HashSet<>();
        X509Certificate current = read(volume.resolve("tls.crt"));
        long least = Long.MAX_VALUE;
        while (true) {
            serials.add(current.getSerialNumber().toString(16));
            long left = current.getNotAfter().getTime() - System.currentTimeMillis();
            least = Math.min(least, left);
            if (left <= 0) {
                System.err.println("after " + serials.size() + " certificates the one in service has ended");
                System.exit(1);
            }
            if (serials.size() >= wanted) {
                System.out.println("{\"serials\": " + serials.size() + ", \"least_seconds\": " + least / 1000.0 + "}");
                return;
            }
            WatchKey key = watcher.poll(LOOK_MILLISECONDS, TimeUnit.MILLISECONDS);
            if (key != null) {
                key.pollEvents();
                key.reset();
                current = read(volume.resolve("tls.crt"));
            }
        }
    }
}
