import java.net.URI;
import java.util.List;
import org.java_websocket.client.WebSocketClient;
import org.java_websocket.drafts.Draft_6455;
import org.java_websocket.extensions.permessage_deflate.PerMessageDeflateExtension;
import org.java_websocket.handshake.ServerHandshake;
import org.java_websocket.protocols.Protocol;

public final class JavaWebSocketClient {
    private static WebSocketClient client;

    public static void main(String[] arguments) throws Exception {
        Dialogue dialogue = new Dialogue(text -> client.send(text));
        var draft = new Draft_6455(List.of(new PerMessageDeflateExtension()), List.of(new Protocol(Dialogue.PROTOCOL)));
        client = new WebSocketClient(URI.create(Dialogue.URL), draft) {
            @Override
            public void onOpen(ServerHandshake handshake) {
                dialogue.opened();
            }

            @Override
            public void onMessage(String text) {
                dialogue.heard(text);
            }

            @Override
            public void onClose(int code, String reason, boolean remote) {
                dialogue.failed("closed: " + code + " " + reason);
            }

            @Override
            public void onError(Exception why) {
                dialogue.failed(why);
            }
        };
        client.connect();
        dialogue.end(Dialogue.version(WebSocketClient.class, "Java-WebSocket"));
    }
}
