import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

/** What is sent next; the process ends when everything came back, with the library's version, or with a failure. */
final class Dialogue {
    static final String URL = System.getenv("URL");
    static final String PROTOCOL = "barrage.v1.json";
    private static final int MESSAGES = 4;
    // Long enough that every library finds it worth compressing, and the same each time: the second refers back.
    private static final String TEXT = "弹幕 the same line of live chat, ".repeat(40);

    private final CountDownLatch ended = new CountDownLatch(1);
    private final Consumer<String> send;
    private String failure;
    private int published;
    private int arrived;

    Dialogue(Consumer<String> send) {
        this.send = send;
    }

    void opened() {
        send.accept("{\"request\":1,\"connect\":{\"name\":\"java\"}}");
    }

    synchronized void heard(String frame) {
        if (frame.contains("\"connected\":")) {
            send.accept("{\"request\":2,\"subscribe\":{\"channel\":\"" + System.getenv("ROOM") + "\"}}");
        } else if (frame.contains("\"subscribed\":")) {
            publish();
        } else if (frame.contains("\"published\":")) {
            if (++published < MESSAGES) publish();
        } else if (frame.contains(TEXT)) {
            arrived++;
        } else {
            failed(frame);
        }
        if (published == MESSAGES && arrived == MESSAGES) ended.countDown();
    }

    private void publish() {
        send.accept("{\"request\":" + (10 + published) + ",\"publish\":{\"channel\":\"" + System.getenv("ROOM")
                + "\",\"clientMessageId\":\"m" + published + "\",\"type\":\"text\",\"text\":\"" + TEXT + "\"}}");
    }

    void failed(Object why) {
        if (failure == null) failure = String.valueOf(why);
        ended.countDown();
    }

    void end(String version) throws InterruptedException {
        if (!ended.await(30, TimeUnit.SECONDS)) failure = "no end in time";
        if (failure != null) {
            System.err.println(failure);
            System.exit(1);
        }
        System.out.println(version);
        System.exit(0);
    }

    /** The version in a jar's name: `name-1.2.3.jar`. */
    static String version(Class<?> of, String name) {
        String jar = of.getProtectionDomain().getCodeSource().getLocation().getPath();
        return jar.replaceAll(".*/" + name + "-", "").replaceAll("\\.jar$", "");
    }
}
