import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.Response;
import okhttp3.WebSocket;
import okhttp3.WebSocketListener;

public final class OkHttpClient_ {
    private static volatile WebSocket socket;

    public static void main(String[] arguments) throws Exception {
        Dialogue dialogue = new Dialogue(text -> socket.send(text));
        Request request = new Request.Builder().url(Dialogue.URL).header("Sec-WebSocket-Protocol", Dialogue.PROTOCOL).build();
        new OkHttpClient().newWebSocket(request, new WebSocketListener() {
            @Override
            public void onOpen(WebSocket open, Response response) {
                socket = open;
                dialogue.opened();
            }

            @Override
            public void onMessage(WebSocket open, String text) {
                dialogue.heard(text);
            }

            @Override
            public void onClosing(WebSocket open, int code, String reason) {
                dialogue.failed("closed: " + code + " " + reason);
            }

            @Override
            public void onFailure(WebSocket open, Throwable why, Response response) {
                dialogue.failed(why);
            }
        });
        dialogue.end(Dialogue.version(OkHttpClient.class, "okhttp-jvm"));
    }
}
