import io.vertx.core.Vertx;
import io.vertx.core.http.WebSocket;
import io.vertx.core.http.WebSocketClientOptions;
import io.vertx.core.http.WebSocketConnectOptions;
import java.net.URI;

public final class VertxClient {
    private static WebSocket socket;

    public static void main(String[] arguments) throws Exception {
        URI uri = URI.create(Dialogue.URL);
        Dialogue dialogue = new Dialogue(text -> socket.writeTextMessage(text));
        var options = new WebSocketClientOptions().setTryUsePerMessageCompression(true);
        var where = new WebSocketConnectOptions().setHost(uri.getHost()).setPort(uri.getPort()).setURI(uri.getPath())
                .addSubProtocol(Dialogue.PROTOCOL);
        Vertx.vertx().createWebSocketClient(options).connect(where).onFailure(dialogue::failed).onSuccess(open -> {
            socket = open;
            open.textMessageHandler(dialogue::heard);
            open.exceptionHandler(dialogue::failed);
            open.closeHandler(nothing -> dialogue.failed("closed: " + open.closeStatusCode()));
            dialogue.opened();
        });
        dialogue.end(Dialogue.version(Vertx.class, "vertx-core"));
    }
}
