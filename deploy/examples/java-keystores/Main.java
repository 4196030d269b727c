import com.sun.net.httpserver.HttpsConfigurator;
import com.sun.net.httpserver.HttpsExchange;
import com.sun.net.httpserver.HttpsParameters;
import com.sun.net.httpserver.HttpsServer;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.URI;
import java.net.URL;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyStore;
import java.security.Principal;
import java.security.PrivateKey;
import java.security.cert.Certificate;
import java.security.cert.CertificateException;
import java.security.cert.X509Certificate;
import java.util.List;
import java.util.concurrent.Executors;
import javax.net.ssl.HttpsURLConnection;
import javax.net.ssl.KeyManager;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLEngine;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.TrustManager;
import javax.net.ssl.TrustManagerFactory;
import javax.net.ssl.X509ExtendedKeyManager;
import javax.net.ssl.X509ExtendedTrustManager;
import javax.net.ssl.X509TrustManager;

/** An HTTPS server and its client, with mutual TLS from keystores that are read again whenever they are renewed. */
public final class Main {
    private static final long LOOK_MILLISECONDS = 1000;
    // Who resumes a session shows no certificate, and is held to be whom he showed when it began.
    private static final int RESUMED_SECONDS = 1;

    /** The keystores of one renewal. */
    private record Stores(Path from, String serial, X509ExtendedKeyManager keys, X509TrustManager trust) {
        /** Of one directory, which is all of one renewal; it is removed some seconds after the next. */
        static Stores read(Path from) throws IOException, GeneralSecurityException {
            char[] password = Files.readString(from.resolve("keystore.password")).toCharArray();
            KeyStore identity = load(from.resolve("keystore.p12"), password);
            KeyManagerFactory keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
            keys.init(identity, password);
            TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
            trust.init(load(from.resolve("truststore.p12"), password));
            return new Stores(from, serialOf(identity.getCertificate("svid")),
                (X509ExtendedKeyManager) keys.getKeyManagers()[0], (X509TrustManager) trust.getTrustManagers()[0]);
        }

        private static KeyStore load(Path file, char[] password) throws IOException, GeneralSecurityException {
            KeyStore store = KeyStore.getInstance("PKCS12");
            store.load(new ByteArrayInputStream(Files.readAllBytes(file)), password);
            return store;
        }

        String named(String alias) {
            return alias == null ? null : serial + "/" + alias;
        }

        boolean has(String alias) {
            return alias.startsWith(serial + "/");
        }
    }

    /** The newest keystores of a volume, and those before: a handshake that began with them ends with them. */
    private static final class Volume {
        private final Path path;
        private volatile List<Stores> known;

        Volume(Path path) throws IOException, GeneralSecurityException {
            this.path = path;
            this.known = List.of(Stores.read(now()));
            Thread watch = new Thread(this::follow, "keystores");
            watch.setDaemon(true);
            watch.start();
        }

        Stores newest() {
            return known.get(0);
        }

        Stores of(String alias) {
            return known.stream().filter(each -> each.has(alias)).findFirst().orElse(newest());
        }

        /** `..data` leads to another directory once all files of a renewal are there. */
        private Path now() throws IOException {
            return path.resolve(Files.readSymbolicLink(path.resolve("..data")));
        }

        private void follow() {
            while (true) {
                try {
                    Thread.sleep(LOOK_MILLISECONDS);
                    Path now = now();
                    if (!now.equals(newest().from)) {
                        known = List.of(Stores.read(now), newest());
                        System.out.println("reloaded " + newest().serial);
                    }
                } catch (IOException | GeneralSecurityException | RuntimeException error) {
                    // Of any kind: without this thread the keystores end some day, and every call fails.
                    System.err.println("not reloaded, tried again: " + error);
                } catch (InterruptedException error) {
                    return;
                }
            }
        }
    }

    /** A key manager that asks the newest; its aliases say of which renewal they are. */
    private static final class Keys extends X509ExtendedKeyManager {
        private final Volume volume;

        Keys(Volume volume) {
            this.volume = volume;
        }

        @Override public String chooseEngineServerAlias(String type, Principal[] issuers, SSLEngine engine) {
            Stores newest = volume.newest();
            return newest.named(newest.keys.chooseEngineServerAlias(type, issuers, engine));
        }

        @Override public String chooseEngineClientAlias(String[] types, Principal[] issuers, SSLEngine engine) {
            Stores newest = volume.newest();
            return newest.named(newest.keys.chooseEngineClientAlias(types, issuers, engine));
        }

        @Override public String chooseServerAlias(String type, Principal[] issuers, Socket socket) {
            Stores newest = volume.newest();
            return newest.named(newest.keys.chooseServerAlias(type, issuers, socket));
        }

        @Override public String chooseClientAlias(String[] types, Principal[] issuers, Socket socket) {
            Stores newest = volume.newest();
            return newest.named(newest.keys.chooseClientAlias(types, issuers, socket));
        }

        @Override public PrivateKey getPrivateKey(String alias) {
            return volume.of(alias).keys.getPrivateKey(alias.substring(alias.indexOf('/') + 1));
        }

        @Override public X509Certificate[] getCertificateChain(String alias) {
            return volume.of(alias).keys.getCertificateChain(alias.substring(alias.indexOf('/') + 1));
        }

        @Override public String[] getServerAliases(String type, Principal[] issuers) {
            return null;
        }

        @Override public String[] getClientAliases(String type, Principal[] issuers) {
            return null;
        }
    }

    /** The newest truststore, and of whom it certifies the one SPIFFE ID: no name of a host is compared. */
    private static final class Trust extends X509ExtendedTrustManager {
        private final Volume volume;
        private final String peer;

        Trust(Volume volume, String peer) {
            this.volume = volume;
            this.peer = peer;
        }

        @Override public void checkClientTrusted(X509Certificate[] chain, String type) throws CertificateException {
            volume.newest().trust.checkClientTrusted(chain, type);
            verify(chain[0]);
        }

        @Override public void checkServerTrusted(X509Certificate[] chain, String type) throws CertificateException {
            volume.newest().trust.checkServerTrusted(chain, type);
            verify(chain[0]);
        }

        private void verify(X509Certificate leaf) throws CertificateException {
            String found = spiffeId(leaf);
            if (!found.equals(peer)) {
                throw new CertificateException(found + " is not " + peer);
            }
        }

        @Override public void checkClientTrusted(X509Certificate[] chain, String type, Socket socket)
                throws CertificateException {
            checkClientTrusted(chain, type);
        }

        @Override public void checkServerTrusted(X509Certificate[] chain, String type, Socket socket)
                throws CertificateException {
            checkServerTrusted(chain, type);
        }

        @Override public void checkClientTrusted(X509Certificate[] chain, String type, SSLEngine engine)
                throws CertificateException {
            checkClientTrusted(chain, type);
        }

        @Override public void checkServerTrusted(X509Certificate[] chain, String type, SSLEngine engine)
                throws CertificateException {
            checkServerTrusted(chain, type);
        }

        @Override public X509Certificate[] getAcceptedIssuers() {
            return volume.newest().trust.getAcceptedIssuers();
        }
    }

    /** Of an X.509-SVID, which has just one name of this kind. */
    private static String spiffeId(X509Certificate leaf) throws CertificateException {
        List<Object> found = leaf.getSubjectAlternativeNames() == null ? List.of()
            : leaf.getSubjectAlternativeNames().stream().filter(each -> each.get(0).equals(6))
                .<Object>map(each -> each.get(1)).toList();
        if (found.size() != 1) {
            throw new CertificateException("no SPIFFE ID, or more than one: " + found);
        }
        return (String) found.get(0);
    }

    private static String serialOf(Certificate certificate) {
        return ((X509Certificate) certificate).getSerialNumber().toString(16);
    }

    private static SSLContext context(Volume volume, String peer) throws GeneralSecurityException {
        SSLContext context = SSLContext.getInstance("TLSv1.3");
        context.init(new KeyManager[] {new Keys(volume)}, new TrustManager[] {new Trust(volume, peer)}, null);
        context.getServerSessionContext().setSessionTimeout(RESUMED_SECONDS);
        context.getClientSessionContext().setSessionTimeout(RESUMED_SECONDS);
        return context;
    }

    private static void serve(Volume volume, int port, String peer) throws IOException, GeneralSecurityException {
        HttpsServer server = HttpsServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.setHttpsConfigurator(new HttpsConfigurator(context(volume, peer)) {
            @Override public void configure(HttpsParameters parameters) {
                SSLParameters wanted = getSSLContext().getDefaultSSLParameters();
                wanted.setNeedClientAuth(true);
                parameters.setSSLParameters(wanted);
            }
        });
        server.createContext("/", exchange -> {
            try (exchange; OutputStream body = exchange.getResponseBody()) {
                String caller = spiffeId(
                    (X509Certificate) ((HttpsExchange) exchange).getSSLSession().getPeerCertificates()[0]);
                byte[] answer = ("hello " + caller + "\n").getBytes(StandardCharsets.UTF_8);
                exchange.sendResponseHeaders(200, answer.length);
                body.write(answer);
            } catch (CertificateException error) {
                throw new IOException(error);
            }
        });
        server.setExecutor(Executors.newCachedThreadPool());
        server.start();
        System.out.println("serving on " + port);
    }

    /** Once a second, each on a connection of its own. */
    private static void call(Volume volume, URL url, String peer) throws GeneralSecurityException,
            InterruptedException {
        SSLContext context = context(volume, peer);
        int failed = 0;
        for (int calls = 1; ; calls++) {
            String outcome;
            try {
                HttpsURLConnection connection = (HttpsURLConnection) url.openConnection();
                connection.setSSLSocketFactory(context.getSocketFactory());
                connection.setRequestProperty("Connection", "close");
                outcome = new String(connection.getInputStream().readAllBytes(), StandardCharsets.UTF_8).strip()
                    + ", by " + serialOf(connection.getServerCertificates()[0]);
            } catch (IOException error) {
                failed++;
                outcome = error.toString();
            }
            System.out.println(outcome + ": " + calls + " calls, " + failed + " failed");
            Thread.sleep(LOOK_MILLISECONDS);
        }
    }

    public static void main(String[] arguments) throws Exception {
        Volume volume = new Volume(Path.of(System.getenv().getOrDefault("IDENTITY", "/spiffe")));
        switch (arguments[0]) {
            case "serve" -> serve(volume, Integer.parseInt(arguments[1]), arguments[2]);
            case "call" -> call(volume, URI.create(arguments[1]).toURL(), arguments[2]);
            default -> throw new IllegalArgumentException("serve PORT SPIFFE-ID | call URL SPIFFE-ID");
        }
    }
}
