import io.netty.bootstrap.Bootstrap;
import io.netty.channel.Channel;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelInitializer;
import io.netty.channel.MultiThreadIoEventLoopGroup;
import io.netty.channel.SimpleChannelInboundHandler;
import io.netty.channel.nio.NioIoHandler;
import io.netty.channel.socket.nio.NioSocketChannel;
import io.netty.handler.codec.http.DefaultHttpHeaders;
import io.netty.handler.codec.http.HttpClientCodec;
import io.netty.handler.codec.http.HttpObjectAggregator;
import io.netty.handler.codec.http.websocketx.TextWebSocketFrame;
import io.netty.handler.codec.http.websocketx.WebSocketClientHandshakerFactory;
import io.netty.handler.codec.http.websocketx.WebSocketClientProtocolHandler;
import io.netty.handler.codec.http.websocketx.WebSocketFrame;
import io.netty.handler.codec.http.websocketx.WebSocketVersion;
import io.netty.handler.codec.http.websocketx.extensions.compression.WebSocketClientCompressionHandler;
import java.net.URI;

public final class NettyClient {
    private static Channel channel;

    public static void main(String[] arguments) throws Exception {
        URI uri = URI.create(Dialogue.URL);
        Dialogue dialogue = new Dialogue(text -> channel.writeAndFlush(new TextWebSocketFrame(text)));
        var handshaker = WebSocketClientHandshakerFactory.newHandshaker(
                uri, WebSocketVersion.V13, Dialogue.PROTOCOL, true, new DefaultHttpHeaders());
        var group = new MultiThreadIoEventLoopGroup(1, NioIoHandler.newFactory());
        new Bootstrap().group(group).channel(NioSocketChannel.class).handler(new ChannelInitializer<Channel>() {
            @Override
            protected void initChannel(Channel fresh) {
                channel = fresh;
                fresh.pipeline().addLast(new HttpClientCodec(), new HttpObjectAggregator(8192),
                        new WebSocketClientCompressionHandler(0), new WebSocketClientProtocolHandler(handshaker),
                        new SimpleChannelInboundHandler<WebSocketFrame>() {
                            @Override
                            protected void channelRead0(ChannelHandlerContext context, WebSocketFrame frame) {
                                if (frame instanceof TextWebSocketFrame text) dialogue.heard(text.text());
                            }

                            @Override
                            public void userEventTriggered(ChannelHandlerContext context, Object event) {
                                if (event == WebSocketClientProtocolHandler.ClientHandshakeStateEvent.HANDSHAKE_COMPLETE) {
                                    dialogue.opened();
                                }
                            }

                            @Override
                            public void channelInactive(ChannelHandlerContext context) {
                                dialogue.failed("closed");
                            }

                            @Override
                            public void exceptionCaught(ChannelHandlerContext context, Throwable why) {
                                dialogue.failed(why);
                            }
                        });
            }
        }).connect(uri.getHost(), uri.getPort()).sync();
        dialogue.end(Dialogue.version(HttpClientCodec.class, "netty-codec-http"));
    }
}
