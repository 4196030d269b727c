import java.io.FileInputStream;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertPathValidator;
import java.security.cert.CertificateFactory;
import java.security.cert.PKIXParameters;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SNIHostName;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

/**
 * For each three arguments: a pod's volume with keystores, its peer's volume, and the port where the peer serves TLS. Says
 * for each, in a line of JSON, at what the peer's certificate path failed, and at what mutual TLS did; empty where nothing.
 */
public final class Verify {
    private static String path(Path own, Path peer) {
        try (InputStream chain = Files.newInputStream(peer.resolve("tls.crt"));
            InputStream authorities = Files.newInputStream(own.resolve("ca.crt"))) {
            CertificateFactory factory = CertificateFactory.getInstance("X.509");
            Set<TrustAnchor> anchors = new HashSet<>();
            for (var each : factory.generateCertificates(authorities)) {
                anchors.add(new TrustAnchor((X509Certificate) each, null));
            }
            PKIXParameters parameters = new PKIXParameters(anchors);
            parameters.setRevocationEnabled(false);
            List<X509Certificate> path = new ArrayList<>();
            for (var each : factory.generateCertificates(chain)) {
                path.add((X509Certificate) each);
            }
            CertPathValidator.getInstance("PKIX").validate(factory.generateCertPath(path), parameters);
            return "";
        } catch (Exception error) {
            return error.toString();
        }
    }

    private static KeyStore store(Path file, char[] password) throws Exception {
        KeyStore found = KeyStore.getInstance("PKCS12");
        try (InputStream content = new FileInputStream(file.toFile())) {
            found.load(content, password);
        }
        return found;
    }

    private static String tls(Path own, int port) {
        if (!Files.exists(own.resolve("keystore.p12"))) {
            return "no keystore";
        }
        try {
            char[] password = Files.readString(own.resolve("keystore.password")).toCharArray();
            KeyManagerFactory keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
            keys.init(store(own.resolve("keystore.p12"), password), password);
            TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
            trust.init(store(own.resolve("truststore.p12"), password));
            SSLContext context = SSLContext.getInstance("TLS");
            context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);
            try (SSLSocket socket = (SSLSocket) context.getSocketFactory().createSocket("127.0.0.1", port)) {
                socket.setSoTimeout(20_000);
                SSLParameters parameters = socket.getSSLParameters();
                parameters.setServerNames(List.of(new SNIHostName("peer.test")));
                socket.setSSLParameters(parameters);
                // The server says so once it has verified this side.
                return socket.getInputStream().readNBytes(3).length == 3 ? "" : "closed";
            }
        } catch (Exception error) {
            return error.toString();
        }
    }

    private static String quoted(String text) {
        return "\"" + text.replaceAll("[\\\\\"\\p{Cntrl}]", " ") + "\"";
    }

    public static void main(String[] arguments) {
        for (int at = 0; at + 2 < arguments.length; at += 3) {
            Path own = Path.of(arguments[at]);
            System.out.println("{\"version\": " + quoted(System.getProperty("java.version"))
                + ", \"path\": " + quoted(path(own, Path.of(arguments[at + 1])))
                + ", \"error\": " + quoted(tls(own, Integer.parseInt(arguments[at + 2]))) + "}");
        }
    }
}
