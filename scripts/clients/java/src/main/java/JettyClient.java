import java.net.URI;
import org.eclipse.jetty.websocket.api.Callback;
import org.eclipse.jetty.websocket.api.Session;
import org.eclipse.jetty.websocket.client.ClientUpgradeRequest;
import org.eclipse.jetty.websocket.client.WebSocketClient;

public final class JettyClient {
    private static Session session;

    /** Jetty calls its methods by reflection. */
    public static final class Listener implements Session.Listener.AutoDemanding {
        private final Dialogue dialogue;

        Listener(Dialogue dialogue) {
            this.dialogue = dialogue;
        }

        @Override
        public void onWebSocketOpen(Session open) {
            session = open;
            dialogue.opened();
        }

        @Override
        public void onWebSocketText(String text) {
            dialogue.heard(text);
        }

        @Override
        public void onWebSocketError(Throwable why) {
            dialogue.failed(why);
        }
    }

    public static void main(String[] arguments) throws Exception {
        Dialogue dialogue = new Dialogue(text -> session.sendText(text, Callback.NOOP));
        WebSocketClient client = new WebSocketClient();
        client.start();
        ClientUpgradeRequest request = new ClientUpgradeRequest(URI.create(Dialogue.URL));
        request.setSubProtocols(Dialogue.PROTOCOL);
        request.addExtensions("permessage-deflate");
        client.connect(new Listener(dialogue), request).whenComplete((open, why) -> {
            if (why != null) dialogue.failed(why);
        });
        dialogue.end(Dialogue.version(WebSocketClient.class, "jetty-websocket-jetty-client"));
    }
}
